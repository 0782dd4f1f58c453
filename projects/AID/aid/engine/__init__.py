"""Trainer, hooks, launch and setup of a run."""

from .dry_run import dry_run
from .evaluate import evaluate
from .launch import launch
from .output_folder import start_run
from .setup import setup
from .trainer import AIDTrainer

__all__ = ["AIDTrainer", "dry_run", "evaluate", "launch", "setup", "start_run"]
