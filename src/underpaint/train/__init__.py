"""Training: stages, the loop, checkpoints."""

from underpaint.train.loop import train
from underpaint.train.start import adopt
from underpaint.train.watch import Check, MakeCheck

__all__ = ["Check", "MakeCheck", "adopt", "train"]
