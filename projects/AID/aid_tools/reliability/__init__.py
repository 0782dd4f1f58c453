"""Does a run survive being killed? A campaign that kills trainings and looks at what they left."""

from .campaign import run_campaign

__all__ = ["run_campaign"]
