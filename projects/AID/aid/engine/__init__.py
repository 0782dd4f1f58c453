"""The trainer, its hooks, and the setup of a run."""

from .setup import setup
from .trainer import AIDTrainer

__all__ = ["AIDTrainer", "setup"]
