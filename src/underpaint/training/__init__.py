"""Training: stages, the loop, checkpoints."""

from underpaint.training.monitor import Check, MakeCheck
from underpaint.training.trainer import train
from underpaint.training.warm_start import adopt

__all__ = ["Check", "MakeCheck", "adopt", "train"]
