"""Config keys of the project, and the loading of its config files."""

from .files import get_value, load_config
from .keys import add_aid_config

__all__ = ["add_aid_config", "get_value", "load_config"]
