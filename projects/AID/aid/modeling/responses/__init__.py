"""What two detectors say about the same samples: two-stage and dense detectors have a file each."""

from . import dense, two_stage
from .base import Answer, Answers, Batch, Question, ask, check_answers

__all__ = [
    "Answer",
    "Answers",
    "Batch",
    "Question",
    "ask",
    "check_answers",
    "dense",
    "two_stage",
]
