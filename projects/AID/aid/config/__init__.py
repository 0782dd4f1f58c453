"""Config keys of the project, and the loading of its config files."""

from .access import flat_keys, get_value
from .files import PYTHON, check_exists, check_program, is_network, is_program, load_config
from .keys import add_aid_config, default_config
from .mistakes import check_key
from .values import changed_keys, clear_program_errors, clear_value_errors

__all__ = [
    "PYTHON",
    "add_aid_config",
    "changed_keys",
    "check_exists",
    "check_key",
    "check_program",
    "clear_program_errors",
    "clear_value_errors",
    "default_config",
    "flat_keys",
    "get_value",
    "is_network",
    "is_program",
    "load_config",
]
