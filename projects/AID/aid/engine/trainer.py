"""DefaultTrainer for students, teachers and plain baselines alike."""

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import StudentCheckpointer
from ..data.build import build_test_loader, build_train_loader
from ..errors import AIDError
from ..evaluation import build_evaluator
from ..modeling.meta_arch import DistillationMixin
from .hooks import SeedStep
from .optimizer import build_optimizer

__all__ = ["AIDTrainer"]


class AIDTrainer(DefaultTrainer):
    """Detectron2's trainer, with a teacher where the config asks for one.

    Differences from :class:`DefaultTrainer`: a model that can distil gets its teacher; checkpoints
    keep the student by itself; a resumed run sees the data and random numbers of one that was never
    interrupted, and ends bit for bit alike on the CPU; the optimizer is chosen by SOLVER.OPTIMIZER;
    evaluation is by COCO's or KITTI's metric.
    """

    def build_hooks(self) -> list:
        # DefaultTrainer has no method that builds its checkpointer, and hands it out first here.
        self.checkpointer = StudentCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        return [SeedStep(self.cfg.SEED), *super().build_hooks()]

    def resume_or_load(self, resume: bool = True) -> None:
        """As :class:`DefaultTrainer`; a resumed run also goes on where the data stopped."""
        super().resume_or_load(resume)
        if self.start_iter > 0:
            self.data_loader = build_train_loader(self.cfg, self.start_iter)

    def run_step(self) -> None:
        # TorchScript (RetinaNet's focal loss) optimises after a process's first calls and rounds
        # differently then. On the CPU, where the rest repeats bit for bit, it must not.
        optimize = _unwrap(self.model).device.type != "cpu"
        with torch.jit.optimized_execution(optimize):
            super().run_step()

    def train(self):
        """Train, after the teacher was evaluated if TEACHER.EVAL_FIRST; then evaluate.

        A finished run that is resumed is evaluated again.

        Raises:
            AIDError: the loss became NaN or infinite.
        """
        if self.start_iter >= self.max_iter:
            logging.getLogger(__name__).warning(
                "%s holds a finished run of %d iterations: nothing is left to train; raise "
                "SOLVER.MAX_ITER to go on, or choose another OUTPUT_DIR to start afresh",
                self.cfg.OUTPUT_DIR,
                self.start_iter,
            )
        if self.cfg.TEACHER.EVAL_FIRST and self.start_iter == 0:
            self.test_teacher()
        try:
            with _without_traceback_of(AIDError, FloatingPointError):
                return super().train()
        except FloatingPointError as error:
            reason = " ".join(str(error).split())
            raise AIDError(
                f"training diverged: {reason}; lower SOLVER.BASE_LR or DISTILLATION.WEIGHT, turn "
                "on SOLVER.CLIP_GRADIENTS.ENABLED, and check the last losses in "
                f"{os.path.join(self.cfg.OUTPUT_DIR, 'metrics.json')}"
            ) from error

    def test_teacher(self) -> dict:
        """Evaluate the teacher on the student's test sets, with the teacher's own preprocessing."""
        teacher = getattr(_unwrap(self.model), "teacher", None)
        if teacher is None:
            raise AIDError("TEACHER.EVAL_FIRST is on, but MODEL.META_ARCHITECTURE has no teacher")
        teacher.follow(_unwrap(self.model).device)
        cfg = teacher.cfg.clone()
        cfg.DATASETS.TEST = self.cfg.DATASETS.TEST
        cfg.OUTPUT_DIR = os.path.join(self.cfg.OUTPUT_DIR, "teacher")
        logging.getLogger(__name__).info("Evaluating the teacher on %s", cfg.DATASETS.TEST)
        return self.test(cfg, teacher.detector)

    def state_dict(self) -> dict:
        state = super().state_dict()
        # RetinaNet's running normaliser is no buffer, so that its state dict does not hold it.
        normalizer = getattr(_unwrap(self.model), "loss_normalizer", None)
        return state if normalizer is None else {**state, "loss_normalizer": normalizer}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if "loss_normalizer" in state_dict:
            _unwrap(self.model).loss_normalizer = state_dict["loss_normalizer"]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        if isinstance(model, DistillationMixin):
            model.attach_distillation(cfg)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference"))


@contextmanager
def _without_traceback_of(*kinds: type[Exception]) -> Iterator[None]:
    """Keep Detectron2's training loop from logging the traceback of what is said in a line."""
    logger = logging.getLogger("detectron2.engine.train_loop")

    def is_wanted(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], kinds))

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def _unwrap(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)
