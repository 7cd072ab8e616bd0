"""Training: stages, the loop, checkpoints."""

from underpaint.training.loop import train
from underpaint.training.monitor import Check, MakeCheck
from underpaint.training.warm_start import adopt

__all__ = ["Check", "MakeCheck", "adopt", "train"]
