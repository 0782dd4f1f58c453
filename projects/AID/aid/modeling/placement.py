"""Device and precision of a teacher, independent of its student's."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch

from ..utils.errors import AIDError

__all__ = ["autocast", "check_device", "dtype_named", "to_device"]

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


def check_device(key: str, name: str) -> None:
    """Check that torch can use a device.

    Args:
        key: config key of ``name``, for the message.
        name: a device such as "cpu" or "cuda:1".

    Raises:
        AIDError: torch cannot use the device.
    """
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError if torch is built without it
        raise AIDError(
            f"{key} is {name!r}, which torch cannot use here: write cpu or a GPU such as cuda:1, "
            'or "" for the student\'s device'
        ) from error


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
