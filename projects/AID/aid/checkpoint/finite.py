"""Search for NaN and infinity in checkpoints."""

from collections.abc import Mapping

from torch import Tensor

from ..utils.text import counted

__all__ = ["NonFiniteError", "non_finite"]


class NonFiniteError(ValueError):
    """Weights with NaN or infinity. The message says in which tensors."""

    def __init__(self, names: list[str]):
        """
        Args:
            names: of the tensors, at least one.
        """
        super().__init__(f"NaN or infinity in {counted(len(names), 'tensor')}, first {names[0]}")


def non_finite(content: object, name: str = "") -> list[str]:
    """List the tensors in nested dicts and lists that hold NaN or infinity.

    Args:
        content: a checkpoint, a state dict, or a part of one.
        name: of ``content`` in the list.

    Returns:
        Names with dots, such as "model.backbone.weight".
    """
    if isinstance(content, Tensor):
        return [] if content.isfinite().all() else [name]
    if isinstance(content, Mapping):
        items = list(content.items())
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))
    else:
        return []
    return [x for k, v in items for x in non_finite(v, f"{name}.{k}".lstrip("."))]
