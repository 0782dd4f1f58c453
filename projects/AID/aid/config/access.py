"""Access to the keys of nested configs by their names with dots."""

from detectron2.config import CfgNode as CN

__all__ = ["flat_keys", "get_value", "set_value"]


def flat_keys(node: dict, prefix: str = "") -> dict[str, object]:
    """Flatten nested keys, as in {"SOLVER.MAX_ITER": 90000}."""
    flat = {}
    for key, value in node.items():
        nested = isinstance(value, dict)
        flat |= flat_keys(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def get_value(node: dict, key: str) -> object:
    """Get the value of a dotted key, such as "MODEL.FPN.OUT_CHANNELS"."""
    value = node
    for name in key.split("."):
        value = value[name]
    return value


def set_value(cfg: CN, key: str, value: object) -> None:
    """Set the value of a dotted key of a config that is not frozen."""
    section, _, name = key.rpartition(".")
    (get_value(cfg, section) if section else cfg)[name] = value
