"""Training: stages, the loop, checkpoints."""

from underpaint.training.monitor import Check as Check
from underpaint.training.monitor import MakeCheck as MakeCheck
from underpaint.training.run import train as train
from underpaint.training.warm_start import adopt as adopt
