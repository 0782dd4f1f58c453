"""Crash campaign, and check of a GPU: runs of the scripts as processes, and what they must show."""

from .campaign import run_campaign
from .gpu_check import check_gpu

__all__ = ["check_gpu", "run_campaign"]
