"""Device and precision of a teacher, independent of its student's."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch

from ..utils.errors import AIDError

__all__ = ["autocast", "dtype_named", "is_usable", "to_device"]

T = TypeVar("T")


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Context in which the operators on a device compute in the given precision.

    Args:
        device: device of the operators.
        dtype: float32 disables autocast; None leaves autocast unchanged.
    """
    if dtype is None:
        return nullcontext()
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def to_device(x: T, device: torch.device) -> T:
    """Move tensors nested in lists, tuples, dicts and dataclasses to a device.

    Args:
        x: tensors and Detectron2's structures; other values are returned unchanged. Tensors that
            are on the device already are not copied.
        device: the target; gradients flow back to the original device.
    """
    return _moved(x, device)


def _moved(x: Any, device: torch.device) -> Any:
    if hasattr(x, "to"):
        return x.to(device)
    if isinstance(x, dict):
        return {key: _moved(value, device) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(_moved(value, device) for value in x)
    if is_dataclass(x) and not isinstance(x, type):
        return type(x)(**{f.name: _moved(getattr(x, f.name), device) for f in fields(x)})
    return x


def is_usable(device: str) -> bool:
    """Whether torch can use a device, such as "cpu" or "cuda:1", on this machine."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):  # AssertionError if torch is built without it
        return False
    return True


def dtype_named(key: str, name: str, options: tuple[str, ...]) -> torch.dtype:
    """Convert the value of a config key to a dtype.

    Args:
        key: config key of ``name``, for the message.
        name: name of a dtype, such as "bfloat16".
        options: allowed names.

    Raises:
        AIDError: the name is not allowed.
    """
    if name not in options:
        raise AIDError(f"{key} is {name!r}: choose one of {', '.join(options)}")
    return getattr(torch, name)
