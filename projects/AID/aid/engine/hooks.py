"""Training hooks."""

import gc
import logging
import time
from contextlib import nullcontext
from datetime import timedelta

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN
from detectron2.utils import comm
from torch import nn

from ..data.seeding import seed_all
from ..modeling.balance import PERIOD, Balance, GradientRatio
from ..modeling.meta_arch import DistillationMixin
from ..modeling.pseudo_labels import is_unlabeled
from ..modeling.teacher_check import are_comparable, compare
from ..utils.errors import check_not_negative
from .weight_average import WeightAverage

__all__ = [
    "AverageWeights",
    "CheckStrength",
    "CollectFigures",
    "CompareTeacher",
    "DropPictures",
    "PreciseStatistics",
    "SaveNormalizers",
    "SeedStep",
    "TimeFirstSteps",
    "strength_hooks",
]


class CompareTeacher(HookBase):
    """Hook that warns if a teacher has a larger loss than its student on the first batches.

    Such a teacher is broken, unless the student was trained before. The losses are those of
    :func:`~aid.modeling.teacher_check.compare`, before the student is trained on the batch. The
    comparison has no effect on training, and ignores DISTILLATION.SCHEDULE.
    """

    def __init__(self, student: nn.Module, num_batches: int):
        """
        Args:
            student: with its teachers.
            num_batches: number of batches, or micro-batches, of this process to compare on.

        Raises:
            AIDError: a negative number.
        """
        check_not_negative("TEACHER.COMPARE_BATCHES", num_batches)
        self._student = student
        self._left = num_batches
        self._losses = []

    def before_train(self) -> None:
        teachers = [distiller.teacher for distiller in self._student.distillers]
        self._teachers = [x for x in teachers if are_comparable(self._student, x.detector)]
        if self._teachers and self.trainer.start_iter == 0 and self._left > 0:
            self._handle = self._student.register_forward_pre_hook(self._compare)

    def _compare(self, student: nn.Module, inputs: tuple) -> None:
        if not student.training or student.is_plain:  # evaluated, or for PreciseStatistics
            return
        labeled = [x for x in inputs[0] if not is_unlabeled(x)]
        self._losses.append(torch.stack(compare(student, self._teachers, labeled)))
        self._left -= 1
        if self._left == 0:
            self._handle.remove()
            *teacher_losses, student_losses = torch.cat(self._losses, dim=1)
            for teacher, losses in zip(self._teachers, teacher_losses, strict=True):
                self._check(teacher.name, torch.stack([losses, student_losses]))

    def _check(self, name: str, losses: torch.Tensor) -> None:
        """Warn if the mean loss of a teacher exceeds that of the student.

        Args:
            name: of the teacher's config file.
            losses: (2, G), per-instance losses of teacher and student.
        """
        losses = losses[:, losses[1].isfinite()]  # boxes without area have no finite loss
        teacher_loss, student_loss = losses.mean(dim=1).tolist()
        if losses.numel() and not teacher_loss <= student_loss:
            logging.getLogger(__name__).warning(
                "The teacher's loss on the first batches is %.3g, that of the student, which has "
                "not learned from it yet, %.3g: unless MODEL.WEIGHTS were trained on these data, "
                "the teacher seems broken; check TEACHER.WEIGHTS, the order of its classes, and "
                "INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD in %s; TEACHER.EVAL_FIRST "
                "evaluates it",
                teacher_loss,
                student_loss,
                name,
            )


# Ratios of the gradient of imitation to the task's without a warning: from a hundredth to a hundred
# times RECIPE, the default of DISTILLATION.BALANCE. On rendered scenes the losses taught best, each
# at its best weight, at 1.7 (AID's own) to 715 (FGD).
RECIPE = 10.0
USUAL = (RECIPE / 100, RECIPE * 100)


class CheckStrength(HookBase):
    """Hook that warns if imitation is far stronger or weaker than the detector's own losses.

    It is for DISTILLATION.BALANCE 0.0, with which nothing else compares the two. The gradients at
    the imitated maps are measured in the first iterations of a run that imitate, without the factor
    of DISTILLATION.SCHEDULE, and with no effect on training.
    """

    def __init__(self, student: nn.Module):
        """
        Args:
            student: with its teachers, and without a balance.
        """
        self._student = student
        self._measured = []

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            self._student.gradient_ratio = GradientRatio().to(self._student.device)

    def after_step(self) -> None:
        ratio = self._student.gradient_ratio
        measured = None if ratio is None else ratio.take()
        if measured is None:
            return
        self._measured.append(measured)
        if len(self._measured) == PERIOD:
            self._student.gradient_ratio = None
            self._check(torch.stack(self._measured))

    def _check(self, logarithms: torch.Tensor) -> None:
        """Warn if the median of the ratios is unusual.

        Args:
            logarithms: of :meth:`GradientRatio.take`; those that are not finite count only if none
                is, and imitation has no gradient.
        """
        known = logarithms[logarithms.isfinite()]
        if not len(known):
            known = logarithms[logarithms == torch.inf]
        weight = self._student.distillation_weight
        if not len(known):
            return
        strength = weight / known.median().exp().item()
        if USUAL[0] <= strength <= USUAL[1]:
            return
        if strength > 0:
            advice = (
                f"set DISTILLATION.BALANCE to {RECIPE} and DISTILLATION.WEIGHT to 1.0 to hold it "
                f"at {RECIPE:g} times, or DISTILLATION.WEIGHT alone to "
                f"{weight * RECIPE / strength:.2g}, now {weight:g}, to start there"
            )
        else:
            advice = (
                "the weights of losses or instances are 0, or no loss depends on these maps; check "
                "DISTILLATION.LOSSES, their weights, DISTILLATION.LEVELS and AID.ALPHA"
            )
        logging.getLogger(__name__).warning(
            "The gradient of imitation is %.2g times that of the detector's own losses at the "
            "imitated maps, in the first iterations that imitate, which is too %s: %s",
            strength,
            "little" if strength < RECIPE else "much",
            advice,
        )


class UpdateBalance(HookBase):
    """Hook that updates the balance with the gradients of a step, before checkpoints are saved."""

    def __init__(self, balance: Balance):
        self._balance = balance

    def after_step(self) -> None:
        self._balance.update()


def strength_hooks(student: nn.Module) -> list[HookBase]:
    """Hooks that set or check the strength of imitation; none for a detector without teachers."""
    if not isinstance(student, DistillationMixin) or student.distillation is None:
        return []
    if student.balance is not None:
        return [UpdateBalance(student.balance)]
    return [CheckStrength(student)] if student.distillation_weight > 0 else []


class AverageWeights(HookBase):
    """Hook that averages the student's weights, before checkpoints are saved and evaluated."""

    def __init__(self, average: WeightAverage):
        self._average = average

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:  # weights were loaded since it was built
            self._average.restart()

    def after_step(self) -> None:
        self._average.update(self.trainer.iter)


class PreciseStatistics(PreciseBN):
    """Detectron2's PreciseBN, whose forward passes are no training steps.

    They run no teacher, and leave the state of the distillation and the running loss normalizer of
    RetinaNet and FCOS as they are. Adapters keep their running statistics, which nothing reads.
    Each update averages over the first images of the stream, whether the run was resumed or not.
    """

    def __init__(self, hook: PreciseBN, average: WeightAverage | None = None):
        """
        Args:
            hook: whose settings it takes over.
            average: of the weights, whose statistics are then computed instead of the student's.
        """
        vars(self).update(vars(hook))
        self._average = average

    def update_stats(self) -> None:
        if self._disabled:
            return
        model = getattr(self._model, "module", self._model)  # of DDP
        normalizer = getattr(model, "loss_normalizer", None)
        is_student = isinstance(model, DistillationMixin)
        self._data_iter = None  # Detectron2 would go on with the next images
        with (
            model.as_plain_detector() if is_student else nullcontext(),
            self._average.in_model() if self._average else nullcontext(),
        ):
            super().update_stats()
        if normalizer is not None:
            model.loss_normalizer = normalizer


class SaveNormalizers(HookBase):
    """Hook that saves the running loss normalizer of RetinaNet and FCOS of every process.

    The normalizer is no buffer and differs between processes, of which only the main one saves
    checkpoints: they are gathered before.
    """

    def __init__(self, model: nn.Module, period: int):
        """
        Args:
            model: the detector, of any family.
            period: iterations between checkpoints.
        """
        self._model = model
        self._period = period
        self._gathered: tuple[int, list[float]] = (-1, [])

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        own = getattr(self._model, "loss_normalizer", None)
        if own is not None and (done % self._period == 0 or done >= self.trainer.max_iter):
            self._gathered = (self.trainer.iter, comm.all_gather(own))

    def state_dict(self) -> dict:
        iteration, by_process = self._gathered
        if iteration == self.trainer.iter:
            return {"by_process": by_process}
        # Saved at another time, when the other processes do not take part.
        own = getattr(self._model, "loss_normalizer", None)
        return {} if own is None else {"by_process": [own]}

    def load_state_dict(self, state_dict: dict) -> None:
        saved, rank = state_dict["by_process"], comm.get_rank()
        same_number = len(saved) == comm.get_world_size()
        self._model.loss_normalizer = saved[rank if same_number else 0]


class CollectFigures(HookBase):
    """Hook that frees Matplotlib's figures after the images of a step have been drawn.

    Figures are in reference cycles, which Python collects less often the more objects there are: in
    training less than once in 1000 iterations, so that figures would accumulate.
    """

    def __init__(self, period: int):
        """
        Args:
            period: iterations between images, at least 1.
        """
        self._period = period

    def after_step(self) -> None:
        if self.trainer.iter % self._period == 0:
            gc.collect()


class DropPictures(HookBase):
    """Hook that drops the images of a step in processes that write no log.

    With VIS_PERIOD, Detectron2 draws images in every process, but writes and frees them in the main
    process only; in the others they would accumulate.
    """

    def after_step(self) -> None:
        self.trainer.storage.clear_images()


class SeedStep(HookBase):
    """Hook that seeds every iteration by run, process and iteration number.

    Detectron2 samples anchors and RoIs at random and saves no random state. With this hook the
    random numbers of a resumed run are those of an uninterrupted one, in every process.
    """

    def __init__(self, seed: int):
        """
        Args:
            seed: of the run, 0 or more.
        """
        self._seed = seed

    def before_step(self) -> None:
        seed_all(self._seed, comm.get_rank(), self.trainer.iter)


class TimeFirstSteps(HookBase):
    """Hook that logs the times of two iterations, long before Detectron2's first line."""

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        number = self.trainer.iter - self.trainer.start_iter
        if number > 1:
            return
        seconds = time.perf_counter() - self._start
        log = logging.getLogger(__name__).info
        if number == 0:
            log("The first iteration took %.3g s, start-up included", seconds)
        else:
            left = timedelta(
                seconds=round((self.trainer.max_iter - self.trainer.iter - 1) * seconds)
            )
            log("The second iteration took %.3g s: %s left at this speed", seconds, left)
