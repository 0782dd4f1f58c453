"""Messages about unknown keys and values of a wrong type, with the right spelling."""

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress

from detectron2.config import CfgNode as CN

from ..utils.d2 import decode_value
from ..utils.errors import AIDError
from ..utils.suggestions import nearest
from .access import get_value
from .keys import default_config

__all__ = ["check_key", "describe"]

# Messages of YACS, which end in the key.
UNKNOWN = re.compile("Non-existent (?:config )?key: (.+)$")
MISMATCH = re.compile("^Type mismatch .* for config key: (.+)$")

KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
}
SWITCHES = {"True": ("true", "yes", "on", "1"), "False": ("false", "no", "off", "0")}


def check_key(key: str, where: str) -> None:
    """Check that a config has a key.

    Args:
        key: with dots.
        where: file that sets it, for the message.

    Raises:
        AIDError: it has not; the message suggests the nearest key.
    """
    cfg = default_config()
    if cfg.key_is_deprecated(key):  # logs a warning
        return
    try:
        get_value(cfg, key)
    except (KeyError, TypeError) as error:
        raise AIDError(f"{where}: {_no_such_key(cfg, key)}") from error


def describe(error: Exception, cfg: CN, given: Mapping) -> str:
    """Describe an error of YACS in one line.

    Args:
        error: raised while values were merged.
        cfg: into which they were merged.
        given: the values, nested or by keys with dots.
    """
    text = " ".join(str(error).split()).strip("'\"")
    if match := UNKNOWN.search(text):
        return _no_such_key(cfg, match[1])
    if match := MISMATCH.search(text):
        key = match[1]
        with suppress(KeyError, TypeError):
            value = given[key] if key in given else get_value(given, key)
            return _wrong_type(key, get_value(cfg, key), decode_value(value))
    if "odd length" in text:
        text += "; quote values with spaces or brackets, such as INPUT.MIN_SIZE_TRAIN '(160, 192)'"
    return text


def _no_such_key(cfg: CN, key: str) -> str:
    node, names = cfg, []
    for name in key.split("."):
        close = nearest(name, node) if isinstance(node, CN) else None
        if close is None:
            return f"Non-existent config key: {key}"
        node = node[close]
        names.append(close)
    return f"Non-existent config key: {key} (did you mean {'.'.join(names)}?)"


def _wrong_type(key: str, default: object, value: object) -> str:
    if isinstance(default, CN):
        inner = f"{key}.{next(iter(default))}"
        return f"{key} is {value!r}, but is a section: set keys in it, such as {inner}"
    start = "a section" if isinstance(value, dict) else repr(value)
    spelling = _spelling(default, value)
    remedy = f": write {shlex.quote(spelling)}" if spelling else ""
    return f"{key} is {start}, but must be {KINDS[type(default)]}{remedy}"


def _spelling(default: object, value: object) -> str | None:
    """Text that YACS reads as a value of the type of ``default``, if one is likely to be meant."""
    if isinstance(value, dict):
        return None
    if isinstance(default, list | tuple):
        # Of a list whose quotes a shell has taken away only the brackets are left.
        words = re.split(r"[\s,]+", value.strip("[]() ")) if isinstance(value, str) else [value]
        words = [x for x in words if x != ""]  # a trailing comma leaves an empty one
        items = ", ".join(json.dumps(x, ensure_ascii=False) for x in words)
        if isinstance(default, list):
            return f"[{items}]"
        return f"({items},)" if len(words) == 1 else f"({items})"
    if isinstance(default, bool):
        word = str(value).lower()
        return next((switch for switch, words in SWITCHES.items() if word in words), None)
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(str(value), ensure_ascii=False) if isinstance(default, str) else None
