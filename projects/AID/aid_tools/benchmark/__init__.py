"""Benchmark of a distillation step against its lower bound in plain Detectron2."""

from .costs import count_costs
from .inputs import random_batch
from .measure import measure, measure_sweep
from .results import Results
from .settings import Settings, parse_size
from .sweep import Sweep

__all__ = [
    "Results",
    "Settings",
    "Sweep",
    "count_costs",
    "measure",
    "measure_sweep",
    "parse_size",
    "random_batch",
]
