"""Crash campaign: kills training runs and checks their checkpoints and resumed results."""

from .campaign import run_campaign

__all__ = ["run_campaign"]
