"""Studies: many runs of train_net.py, side by side, and what they say together."""

from .grid import Job, Study, load_study
from .page import compare, write_study
from .results import paired_difference, read_results
from .runner import run_study
from .separation import measure_weights

__all__ = [
    "Job",
    "Study",
    "compare",
    "load_study",
    "measure_weights",
    "paired_difference",
    "read_results",
    "run_study",
    "write_study",
]
