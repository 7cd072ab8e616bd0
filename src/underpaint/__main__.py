"""`python -m underpaint COMMAND …`, and with it `torchrun -m underpaint train …`."""

import sys

from underpaint.cli import main

if __name__ == "__main__":
    sys.exit(main())
