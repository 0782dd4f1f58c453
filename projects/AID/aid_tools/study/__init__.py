"""Studies: grids of runs of train_net.py and their joint evaluation."""

from .cells import BASELINES, EQUAL_TIME, compare_rules
from .gradients import compare_gradients, jobs_with_gradients, measure_gradients
from .grid import Job, Study, load_study
from .page import write_study
from .results import read_results
from .runner import check_settings, run_study
from .separation import jobs_to_measure, measure_weights
from .strengths import tune

__all__ = [
    "BASELINES",
    "EQUAL_TIME",
    "Job",
    "Study",
    "check_settings",
    "compare_gradients",
    "compare_rules",
    "jobs_to_measure",
    "jobs_with_gradients",
    "load_study",
    "measure_gradients",
    "measure_weights",
    "read_results",
    "run_study",
    "tune",
    "write_study",
]
