"""A student's start from its teacher's weights."""

import logging

import torch
from torch import nn

from ..utils.errors import AIDError

__all__ = ["inherit"]

# Detectron2's name of the net below FPN, which is the student's own.
BOTTOM_UP = "backbone.bottom_up."


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Copy the teacher's FPN and heads into the student where names and shapes agree.

    As FGD (Yang et al., CVPR 2022) and MGD (Yang et al., ECCV 2022) do it. What was taken and what
    was not is said in the log.

    Args:
        student: a detector; changed in place.
        teacher: a detector.

    Returns:
        The names of the tensors that were taken.

    Raises:
        AIDError: there is none.
    """
    theirs = teacher.state_dict()
    own = {
        name: x
        for name, x in student.state_dict().items()
        if not name.startswith((BOTTOM_UP, "distillation."))
    }
    taken = [name for name, x in own.items() if name in theirs and theirs[name].shape == x.shape]
    if not taken:
        raise AIDError(
            "TEACHER.INHERIT is on, but no tensor of the student's FPN and heads has the name and "
            "shape of one of the teacher's: turn it off, or choose a teacher of the same family "
            "and width"
        )
    for name in taken:
        own[name].copy_(theirs[name])
    logging.getLogger(__name__).info(
        "Inherited from the teacher: %s; not inherited: %s",
        _modules(taken),
        _modules(own.keys() - set(taken)) or "none",
    )
    return taken


def _modules(names: list[str]) -> str:
    """The modules that tensors belong to, each once."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in sorted(names)))
