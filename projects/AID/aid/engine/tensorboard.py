"""TensorBoard's view of a run, in groups; metrics.json keeps Detectron2's names."""

from functools import cached_property

from detectron2.utils.events import TensorboardXWriter
from torch.utils.tensorboard import SummaryWriter

__all__ = ["GroupingTensorboardWriter", "grouped"]

# What evaluators call the tasks that they measure, as in "bbox/AP".
TASKS = {"bbox", "segm", "kitti"}
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}
WHOLE = {"total_loss", "lr", "[metric]grad_scaler"}
# Charts of several curves each, for TensorBoard's tab "Custom scalars"; names are patterns.
LAYOUT = {
    "run": {
        "losses of the student": ["Multiline", ["student/loss_.*"]],
        "losses of imitation": ["Multiline", ["distillation/.*"]],
        "weights of imitation": ["Multiline", ["aid/.*(weight|map)_.*"]],
        "AP": ["Multiline", ["evaluation/.*/AP.*"]],
    }
}


def grouped(name: str) -> str:
    """What TensorBoard calls a scalar of the log.

    TensorBoard makes a group of what has the same beginning up to the first slash. ``aid/`` names
    are groups already; the others are the student's, imitation's (``distillation/``), the run's as
    a whole (``training/``), times, and results on test sets (``evaluation/``).
    """
    if name.startswith("aid/"):
        return name
    if name.startswith("loss_distill"):
        return f"distillation/{name}"
    if name in TIMES:
        return f"time/{name}"
    if name in WHOLE:
        return f"training/{name}"
    # With several test sets, the set's name comes before the task's.
    return f"{'student' if TASKS.isdisjoint(name.split('/')[:-1]) else 'evaluation'}/{name}"


class GroupingTensorboardWriter(TensorboardXWriter):
    """Detectron2's writer, with scalars in groups and charts of several in one."""

    @cached_property
    def _writer(self) -> SummaryWriter:
        writer = _GroupingSummaryWriter(**self._writer_args)
        writer.add_custom_scalars(LAYOUT)
        return writer


class _GroupingSummaryWriter(SummaryWriter):
    def add_scalar(self, tag: str, *args, **kwargs) -> None:
        super().add_scalar(grouped(tag), *args, **kwargs)
