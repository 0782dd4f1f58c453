"""Report on finished runs: tables and figures from their output folders."""

from .page import write_report
from .runs import Run, load_run, load_runs

__all__ = ["Run", "load_run", "load_runs", "write_report"]
