"""Trainer, hooks, launch and setup of a run."""

from .arguments import argument_parser
from .dry_run import dry_run
from .launch import launch
from .output_folder import start_run
from .setup import setup
from .trainer import AIDTrainer

__all__ = ["AIDTrainer", "argument_parser", "dry_run", "launch", "setup", "start_run"]
