"""What two detectors say about the same samples: two-stage and dense detectors have a file each."""

from . import dense, two_stage
from .base import Answer, Answers, Batch, Question, ask, check_answers
from .cross import Branches, tap_branches

__all__ = [
    "Answer",
    "Answers",
    "Batch",
    "Branches",
    "Question",
    "ask",
    "check_answers",
    "dense",
    "tap_branches",
    "two_stage",
]
