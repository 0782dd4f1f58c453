"""What finished runs came to: tables and pictures from their output folders."""

from .page import write_report
from .runs import Run, load_run, load_runs

__all__ = ["Run", "load_run", "load_runs", "write_report"]
