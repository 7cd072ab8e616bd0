"""Training: stages, the loop, checkpoints."""

from underpaint.training.loop import train
from underpaint.training.start import adopt
from underpaint.training.watch import Check, MakeCheck

__all__ = ["Check", "MakeCheck", "adopt", "train"]
