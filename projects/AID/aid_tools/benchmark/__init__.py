"""What a step of distillation costs, beside what it cannot cost less than."""

from .inputs import random_batch
from .measure import measure, measure_sweep
from .results import Results
from .settings import Settings, parse_size
from .sweep import Sweep

__all__ = [
    "Results",
    "Settings",
    "Sweep",
    "measure",
    "measure_sweep",
    "parse_size",
    "random_batch",
]
