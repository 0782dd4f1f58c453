"""Device and precision of a detector that need not be those of its student."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch

from ..utils.errors import AIDError

__all__ = ["autocast", "check_device", "dtype_named", "to_device"]

T = TypeVar("T")


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Context in which the operators on a device compute in a precision.

    Args:
        device: where the operators run.
        dtype: float32 disables autocast; None leaves it as it is outside of the context.
    """
    if dtype is None:
        return nullcontext()
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def to_device(x: T, device: torch.device) -> T:
    """Move what is nested in lists, tuples, dicts and dataclasses to a device.

    Args:
        x: tensors and Detectron2's structures; other values are returned as they are. Tensors
            that are on the device already are not copied.
        device: the target; gradients flow back to where they come from.
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
    """Check that torch has a device.

    Args:
        key: config key of ``name``, for the message.
        name: such as "cpu" or "cuda:1".

    Raises:
        AIDError: it has not.
    """
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # the latter if torch is built without it
        raise AIDError(
            f"{key} is {name!r}, which torch cannot use here: write cpu or a GPU such as cuda:1, "
            'or "" for the student\'s device'
        ) from error


def dtype_named(key: str, name: str, options: tuple[str, ...]) -> torch.dtype:
    """Type of numbers that a config key names.

    Args:
        key: of ``name``, for the message.
        name: such as "bfloat16".
        options: allowed names.

    Raises:
        AIDError: the name is none of them.
    """
    if name not in options:
        raise AIDError(f"{key} is {name!r}: choose one of {', '.join(options)}")
    return getattr(torch, name)
