"""TensorBoard writer that groups scalars; metrics.json has Detectron2's names."""

from functools import cached_property

from detectron2.utils.events import TensorboardXWriter
from torch.utils.tensorboard import SummaryWriter

__all__ = ["GroupingTensorboardWriter", "grouped"]

# Task names of the evaluators, as in "bbox/AP".
TASKS = {"bbox", "segm", "kitti"}
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}
WHOLE = {"total_loss", "lr", "[metric]grad_scaler"}
# Charts with several curves, for TensorBoard's tab "Custom scalars"; scalars are given as patterns.
LAYOUT = {
    "run": {
        "losses of the student": ["Multiline", ["student/loss_.*"]],
        "losses of imitation": ["Multiline", ["distillation/.*"]],
        "weights of imitation": ["Multiline", ["aid/.*(weight|map)_.*"]],
        "AP": ["Multiline", ["evaluation/.*/AP.*"]],
    }
}


def grouped(name: str) -> str:
    """Map the log name of a scalar to its name in TensorBoard.

    TensorBoard groups scalars by the part before the first slash. The groups are ``aid/``, whose
    names are unchanged, ``student/``, ``distillation/``, ``training/`` (the run as a whole),
    ``time/`` and ``evaluation/`` (results on test sets).
    """
    if name.startswith("aid/"):
        return name
    if name.startswith("loss_distill"):
        return f"distillation/{name}"
    if name in TIMES:
        return f"time/{name}"
    if name in WHOLE:
        return f"training/{name}"
    # With several test sets, the name of the set precedes the task.
    return f"{'student' if TASKS.isdisjoint(name.split('/')[:-1]) else 'evaluation'}/{name}"


class GroupingTensorboardWriter(TensorboardXWriter):
    """Detectron2's TensorBoard writer with grouped scalars and charts of several curves."""

    @cached_property
    def _writer(self) -> SummaryWriter:
        writer = _GroupingSummaryWriter(**self._writer_args)
        writer.add_custom_scalars(LAYOUT)
        return writer


class _GroupingSummaryWriter(SummaryWriter):
    def add_scalar(self, tag: str, *args, **kwargs) -> None:
        super().add_scalar(grouped(tag), *args, **kwargs)
