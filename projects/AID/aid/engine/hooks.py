"""Training hooks."""

import gc
import logging

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ..data.seeding import seed_all
from ..modeling.balance import Balance
from ..modeling.teacher_check import are_comparable, compare

__all__ = ["CollectFigures", "CompareTeacher", "DropPictures", "SeedStep", "UpdateBalance"]


class CompareTeacher(HookBase):
    """Warns of a teacher that is worse than its student on the first batches of a run.

    Unless the student was trained before, such a teacher is broken. It is seen by the losses of
    :func:`~aid.modeling.comparison.compare`, before the student trains on a batch, and changes
    nothing of that; whether imitation has started is of no account.
    """

    def __init__(self, student: nn.Module, num_batches: int):
        """
        Args:
            student: with its teachers.
            num_batches: that this process looks at; with micro-batches, of these.
        """
        self._student = student
        self._left = num_batches
        self._losses = []

    def before_train(self) -> None:
        teachers = [distiller.teacher for distiller in self._student.distillers]
        self._teachers = [x for x in teachers if are_comparable(self._student, x.detector)]
        if self._teachers and self.trainer.start_iter == 0 and self._left > 0:
            self._handle = self._student.register_forward_pre_hook(self._look)

    def _look(self, student: nn.Module, inputs: tuple) -> None:
        if not student.training:  # it is evaluated
            return
        self._losses.append(torch.stack(compare(student, self._teachers, *inputs)))
        self._left -= 1
        if self._left == 0:
            self._handle.remove()
            *theirs, ours = torch.cat(self._losses, dim=1)
            for teacher, losses in zip(self._teachers, theirs, strict=True):
                self._judge(teacher.name, torch.stack([losses, ours]))

    def _judge(self, name: str, losses: torch.Tensor) -> None:
        """Warn by the losses (2, G) of the teacher of this name and the student."""
        losses = losses[:, losses[1].isfinite()]  # a box without area has none
        theirs, ours = losses.mean(dim=1).tolist()
        if losses.numel() and not theirs <= ours:
            logging.getLogger(__name__).warning(
                "The teacher's loss on the first batches is %.3g, that of the student, which has "
                "not learned from it yet, %.3g: unless MODEL.WEIGHTS were trained on these data, "
                "the teacher seems broken; check TEACHER.WEIGHTS, the order of its classes, and "
                "INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD in %s; TEACHER.EVAL_FIRST "
                "evaluates it",
                theirs,
                ours,
                name,
            )


class UpdateBalance(HookBase):
    """Has a student take in the gradients that were measured in a step, ahead of checkpoints."""

    def __init__(self, balance: Balance):
        self._balance = balance

    def after_step(self) -> None:
        self._balance.update()


class CollectFigures(HookBase):
    """Frees what the pictures of a step were drawn with.

    Matplotlib's figures are reference cycles. Python looks for these the more rarely the more
    objects there are, in a training once in a thousand iterations and more, and they pile up.
    """

    def __init__(self, period: int):
        """
        Args:
            period: iterations from picture to picture, at least 1.
        """
        self._period = period

    def after_step(self) -> None:
        if self.trainer.iter % self._period == 0:
            gc.collect()


class DropPictures(HookBase):
    """Drops the pictures of a step in processes that write no log.

    Detectron2 has every process draw them and keeps them until they are written, which only the
    main process does: with VIS_PERIOD on, the others would need more and more memory.
    """

    def after_step(self) -> None:
        self.trainer.storage.clear_images()


class SeedStep(HookBase):
    """Seeds every iteration by its number.

    Detectron2 samples anchors and RoIs at random and saves no random state. With this hook an
    interrupted run goes on exactly as if nothing had happened, on every process.
    """

    def __init__(self, seed: int):
        """
        Args:
            seed: of the run, not negative.
        """
        self._seed = seed

    def before_step(self) -> None:
        seed_all(self._seed, comm.get_rank(), self.trainer.iter)
