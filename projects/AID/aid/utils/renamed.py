"""Aliases of the import paths and names of version 0.1, for files written for that version."""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from .errors import AIDError

__all__ = ["install", "refuse_renamed"]

# {old module: (new module, {old name: new name})}
MODULES = {
    "aid.errors": ("aid.utils.errors", {}),
    "aid.modeling.gfl": ("aid.modeling.detectors.gfl", {}),
    "aid.modeling.instance_loss.anchors": ("aid.modeling.families.anchors", {}),
    "aid.modeling.instance_loss.base": (
        "aid.modeling.families.base",
        {"InstanceLosses": "PerInstanceLosses", "instance_losses": "per_instance_losses"},
    ),
    "aid.modeling.instance_loss.dense": ("aid.modeling.families.dense", {}),
}


class _OldModule(ModuleType):
    def __getattr__(self, name: str) -> object:
        new_module, names = MODULES[self.__name__]
        value = getattr(import_module(new_module), names.get(name, name))
        return _with_pairs(value) if name == "losses_per_instance" else value


def _with_pairs(losses_per_instance: Callable) -> Callable:
    """Adapt ``losses_per_instance`` to a loss function that returns a pair instead of a dict."""

    def wrapper(losses: Callable, *args, **kwargs):
        return losses_per_instance(
            lambda *samples: dict(zip(("cls", "box"), losses(*samples), strict=True)),
            *args,
            **kwargs,
        )

    return wrapper


def install() -> None:
    """Add the old modules to ``sys.modules``."""
    for name in MODULES:
        sys.modules.setdefault(name, _OldModule(name))


def refuse_renamed(cls: type, names: dict[str, str]) -> None:
    """Check that a subclass defines no method by its old name, under which it is never called.

    Args:
        cls: class defined by the user.
        names: {old name: new name}.

    Raises:
        AIDError: the class defines an old name.
    """
    old = [name for name in names if name in vars(cls)]
    if old:
        raise AIDError(
            f"{cls.__module__}.{cls.__name__} defines {old[0]}, which is {names[old[0]]} since "
            "version 0.2: rename it there (docs/extending.md)"
        )
