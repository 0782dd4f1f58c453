"""The trainer, its hooks, and the setup of a run."""

from .launch import launch
from .setup import argument_parser, setup
from .trainer import AIDTrainer

__all__ = ["AIDTrainer", "argument_parser", "launch", "setup"]
