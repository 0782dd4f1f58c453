"""Initialization of a student from its teacher's weights."""

import logging
from collections.abc import Collection

import torch
from torch import nn

from ..utils.errors import AIDError

__all__ = ["inherit"]

# Detectron2's prefix of the network below FPN, which is not inherited.
BOTTOM_UP = "backbone.bottom_up."


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Copy the teacher's FPN and heads into the student where names and shapes match.

    This is the inheriting strategy of FGD (Yang et al., CVPR 2022) and MGD (Yang et al., ECCV
    2022). The log lists the modules that were copied and those that were not, and of a module that
    was copied in part its tensors.

    Args:
        student: a detector; changed in place.
        teacher: a detector.

    Returns:
        Names of the tensors that were copied.

    Raises:
        AIDError: no weight matches; biases alone do not count.
    """
    teacher_state = teacher.state_dict()
    student_state = {
        name: x
        for name, x in student.state_dict().items()
        if not name.startswith((BOTTOM_UP, "distillation."))
    }
    inherited = [
        name
        for name, x in student_state.items()
        if name in teacher_state and teacher_state[name].shape == x.shape
    ]
    # Biases that are as long as the list of classes match nets of any width.
    if not any(student_state[name].dim() > 1 for name in inherited):
        raise AIDError(
            "TEACHER.INHERIT is on, but no weight of the student's FPN and heads has the name and "
            "shape of one of the teacher's: turn it off, or choose a teacher of the same family "
            "and width (MODEL.FPN.OUT_CHANNELS)"
        )
    for name in inherited:
        student_state[name].copy_(teacher_state[name])
    others = student_state.keys() - set(inherited)
    logging.getLogger(__name__).info(
        "Inherited from the teacher: %s; not inherited: %s",
        _modules(inherited, others),
        _modules(others, inherited) or "none",
    )
    return inherited


def _modules(names: Collection[str], others: Collection[str]) -> str:
    """Names of the modules of these tensors; of tensors where a module has some of the others."""
    partly = {_module(name) for name in others}
    shown = (name if _module(name) in partly else _module(name) for name in sorted(names))
    return ", ".join(dict.fromkeys(shown))


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name
