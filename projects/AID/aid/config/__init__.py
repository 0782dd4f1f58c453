"""Config keys of the project, and the loading of its config files."""

from .files import get_value, load_config
from .keys import add_aid_config
from .values import clear_value_errors

__all__ = ["add_aid_config", "clear_value_errors", "get_value", "load_config"]
