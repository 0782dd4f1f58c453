"""Trainer for students, teachers and plain detectors."""

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicWriter, PreciseBN
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import TensorboardXWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import StudentCheckpointer, check_torchvision_weights
from ..data.build import build_test_loader, build_train_loader, micro_batch_size, start_at
from ..data.unlabeled import num_unlabeled
from ..evaluation import build_evaluator
from ..inference import classes_of
from ..modeling.build import warn_of_frozen_norms
from ..modeling.families import respect_ignore_regions
from ..modeling.inheritance import inherit
from ..modeling.meta_arch import DistillationMixin, plain_architecture
from ..modeling.placement import dtype_named
from ..modeling.teacher import Teacher
from ..modeling.teacher_check import is_of_another_size
from ..utils.errors import AIDError, check_one_or_more
from ..utils.files import clear_write_errors, lock_folder
from ..utils.text import counted
from .accumulation import AccumulatingAMPTrainer, AccumulatingTrainer
from .errors import clear_run_errors, without_known_tracebacks
from .hooks import (
    AverageWeights,
    CollectFigures,
    CompareTeacher,
    DropPictures,
    PreciseStatistics,
    SaveNormalizers,
    SeedStep,
    TimeFirstSteps,
    strength_hooks,
)
from .optimizer import build_optimizer, own_settings, pause_adapters
from .output_folder import write_results
from .tensorboard import GroupingTensorboardWriter
from .weight_average import WeightAverage
from .writers import PunctualWriter, own_writers

__all__ = ["AIDTrainer"]


class AIDTrainer(DefaultTrainer):
    """DefaultTrainer with distillation, if the config's architecture is one of this project's.

    Differences from :class:`DefaultTrainer`: the distillation of a student is built; checkpoints
    have the plain student under "model"; SOLVER.OPTIMIZER sets the optimizer; evaluation uses the
    metric of COCO or KITTI.

    A run that is resumed with the same number of processes continues with the data and random
    numbers of an uninterrupted one. On the CPU its weights are bit-identical to it.

    The constructor sets no process-wide options except logging, as :class:`DefaultTrainer` does;
    :func:`~aid.engine.setup` sets those of a run.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a config with SEED >= 0, as :func:`~aid.engine.setup` returns it.

        Raises:
            AIDError: SEED is negative, or model, loader or optimizer cannot be built.
        """
        # Replaces DefaultTrainer.__init__, in which the device of DDP, the checkpointer and the
        # class of the inner trainer are fixed. Same order of construction.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg
        self._is_in_step = False
        with clear_run_errors(cfg):
            self.cfg = self.auto_scale_workers(cfg, comm.get_world_size())
            self._build(self.cfg)

    def _build(self, cfg: CfgNode) -> None:
        _check_unlabeled(cfg, micro_batch_size(cfg))  # fail before the model is built
        if cfg.SEED < 0:
            raise AIDError(f"SEED is {cfg.SEED}: set one of 0 or more; aid.engine.setup draws one")
        check_one_or_more("SOLVER.CHECKPOINT_PERIOD", cfg.SOLVER.CHECKPOINT_PERIOD)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = _distribute(model)
        steps = cfg.SOLVER.ACCUMULATION_STEPS
        dtype = dtype_named("SOLVER.AMP.DTYPE", cfg.SOLVER.AMP.DTYPE, ("float16", "bfloat16"))
        if cfg.SOLVER.AMP.ENABLED:
            self._trainer = AccumulatingAMPTrainer(model, loader, optimizer, steps, dtype)
        else:
            self._trainer = AccumulatingTrainer(model, loader, optimizer, steps)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.average = None
        if cfg.MODEL_EMA.ENABLED:
            self.average = WeightAverage(_unwrap(model), cfg.MODEL_EMA.DECAY)
        self.checkpointer = StudentCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            average=self.average,
            classes=classes_of(cfg),
            trainer=weakref.proxy(self),
        )
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list:
        hooks = [SeedStep(self.cfg.SEED)]
        student = _unwrap(self.model)
        hooks += strength_hooks(student)
        hooks.append(SaveNormalizers(student, self.cfg.SOLVER.CHECKPOINT_PERIOD))
        if self.average is not None:
            hooks.append(AverageWeights(self.average))
        for hook in super().build_hooks():
            if isinstance(hook, PreciseBN):
                hook = PreciseStatistics(hook, self.average)
            elif isinstance(hook, EvalHook) and self.average is not None:
                hook = EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test_average)
            elif isinstance(hook, PeriodicWriter):
                hook = PunctualWriter(hook)
            hooks.append(hook)
        if comm.is_main_process():
            hooks.insert(0, TimeFirstSteps())
        else:
            hooks.append(DropPictures())
        if self.cfg.VIS_PERIOD > 0:
            hooks.append(CollectFigures(self.cfg.VIS_PERIOD))
        if isinstance(student, DistillationMixin):
            hooks.append(CompareTeacher(student, self.cfg.TEACHER.COMPARE_BATCHES))
        return hooks

    def _test_average(self) -> dict:
        with self.average.in_model():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self) -> list:
        writers = own_writers(super().build_writers(), self.max_iter)
        grouping = GroupingTensorboardWriter(self.cfg.OUTPUT_DIR)
        return [grouping if isinstance(x, TensorboardXWriter) else x for x in writers]

    def resume_or_load(self, resume: bool = True) -> None:
        """Load weights or resume, see :class:`DefaultTrainer`, and continue the stream of data.

        A fresh student inherits its teacher's FPN and heads if TEACHER.INHERIT is True.

        Raises:
            AIDError: the processes find different checkpoints, or there is nothing to inherit.
        """
        if resume:
            path = self.checkpointer.get_checkpoint_file()
            checkpoints = comm.all_gather(os.path.basename(path))
            if len(set(checkpoints)) > 1:
                names = sorted({name or "none" for name in checkpoints})
                raise AIDError(
                    f"--resume: processes find different checkpoints in {self.cfg.OUTPUT_DIR} "
                    f"({', '.join(names)}): let all machines share this folder, or copy it"
                )
        super().resume_or_load(resume)
        student = _unwrap(self.model)
        is_fresh = not (resume and self.checkpointer.has_checkpoint())
        if is_fresh:
            warn_of_frozen_norms(self.cfg, student)
        if is_fresh and self.cfg.TEACHER.INHERIT and isinstance(student, DistillationMixin):
            inherit(student, student.teacher.detector)
        if self.start_iter > 0:
            start_at(self.data_loader, self.cfg, self.start_iter)
        if resume:
            logging.getLogger(__name__).info(
                "--resume: %s", "no checkpoint yet, a fresh start" if is_fresh else f"from {path}"
            )

    def run_step(self) -> None:
        # TorchScript (focal loss) optimizes after the first calls in a process, which changes the
        # rounding. On the CPU, where resuming is exact otherwise, it must not.
        optimize = _unwrap(self.model).device.type != "cpu"
        with torch.jit.optimized_execution(optimize), self._clear_first_step():
            super().run_step()

    def before_step(self) -> None:
        self._is_in_step = True
        super().before_step()

    def after_step(self) -> None:
        with self._clear_first_step():
            super().after_step()
        self._is_in_step = False

    def after_train(self) -> None:
        if self._is_in_step:  # it failed: Detectron2 would evaluate after the last iteration
            self._hooks = [x for x in self._hooks if not isinstance(x, EvalHook)]
        if self.start_iter >= self.max_iter:  # Detectron2 has counted an iteration that was not run
            self.iter = self.start_iter
        super().after_train()

    def _clear_first_step(self) -> AbstractContextManager:
        if self.iter > self.start_iter:
            return nullcontext()
        return clear_run_errors(self.cfg)

    def train(self):
        """Evaluate the teachers if TEACHER.EVAL_FIRST, train, and evaluate the student.

        A finished run that is resumed is only evaluated.

        Returns:
            See :meth:`DefaultTrainer.train`.

        Raises:
            AIDError: a loss is NaN or infinite, or OUTPUT_DIR cannot be written or is in use by
                another run.
        """
        if self.start_iter >= self.max_iter:
            logging.getLogger(__name__).warning(
                "%s holds a run of %s, SOLVER.MAX_ITER is %d: nothing is left to train; raise "
                "SOLVER.MAX_ITER to go on, or choose another OUTPUT_DIR to start afresh",
                self.cfg.OUTPUT_DIR,
                counted(self.start_iter, "iteration"),
                self.max_iter,
            )
            if comm.is_main_process():
                lock_folder(self.cfg.OUTPUT_DIR)
        if self.cfg.TEACHER.EVAL_FIRST and self.start_iter == 0:
            self.test_teachers()
        with self.clear_errors():
            return super().train()

    @contextmanager
    def clear_errors(self) -> Iterator[None]:
        """Convert errors of diverged losses and a full disk to an AIDError.

        Raises:
            AIDError: see :meth:`train`.
        """
        folder = self.cfg.OUTPUT_DIR
        try:
            with clear_write_errors(folder), without_known_tracebacks(folder):
                yield
        except FloatingPointError as error:
            reason = " ".join(str(error).split())
            is_student = isinstance(_unwrap(self.model), DistillationMixin)
            weight = " or DISTILLATION.WEIGHT" if is_student else ""
            amp = "turn SOLVER.AMP.ENABLED off, " if self.cfg.SOLVER.AMP.ENABLED else ""
            raise AIDError(
                f"training diverged at iteration {self.iter}: {reason}; lower SOLVER.BASE_LR"
                f"{weight}, {amp}turn on SOLVER.CLIP_GRADIENTS.ENABLED, and check the warnings at "
                f"the start and the last losses in {os.path.join(folder, 'metrics.json')}"
            ) from error

    def test_teachers(self) -> list[dict]:
        """Evaluate the teachers on the student's test sets, each with its own preprocessing.

        Writes the results to ``teacher/metrics.json``, those of further teachers to
        ``teacher_1/metrics.json`` etc. If the student's images have a much different size, the
        teacher is evaluated at that size, too: ``teacher/at_student_size/metrics.json``.

        Returns:
            Results of each teacher at its own size, see :meth:`test`.

        Raises:
            AIDError: the model has no teacher.
        """
        student = _unwrap(self.model)
        if not isinstance(student, DistillationMixin):
            raise AIDError("TEACHER.EVAL_FIRST is on, but MODEL.META_ARCHITECTURE has no teacher")
        results = []
        for number, distiller in enumerate(student.distillers):
            teacher = distiller.teacher
            teacher.follow(student.device)
            cfg = teacher.cfg.clone()
            cfg.DATASETS.TEST = self.cfg.DATASETS.TEST
            folder = f"teacher_{number}" if number else "teacher"
            cfg.OUTPUT_DIR = os.path.join(self.cfg.OUTPUT_DIR, folder)
            results.append(self._test_teacher(teacher, cfg))
            if is_of_another_size(teacher, self.cfg):
                cfg.INPUT.MIN_SIZE_TEST = max(self.cfg.INPUT.MIN_SIZE_TRAIN)
                cfg.INPUT.MAX_SIZE_TEST = self.cfg.INPUT.MAX_SIZE_TRAIN
                cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "at_student_size")
                self._log_both_sizes(teacher, results[-1], self._test_teacher(teacher, cfg))
        return results

    def _test_teacher(self, teacher: Teacher, cfg: CfgNode) -> dict:
        logging.getLogger(__name__).info(
            "Evaluating the teacher of %s on %s, at INPUT.MIN_SIZE_TEST %d",
            teacher.name,
            cfg.DATASETS.TEST,
            cfg.INPUT.MIN_SIZE_TEST,
        )
        with teacher.autocast():
            results = self.test(cfg, teacher.detector)
        if comm.is_main_process() and results:
            write_results(cfg.OUTPUT_DIR, results)
        return results

    def _log_both_sizes(self, teacher: Teacher, own: dict, at_student_size: dict) -> None:
        after = flatten_results_dict(at_student_size)
        for metric, value in flatten_results_dict(own).items():
            if metric.endswith("bbox/AP"):
                logging.getLogger(__name__).warning(
                    "The teacher of %s has %s %.3g at its own size, INPUT.MIN_SIZE_TEST %d, and "
                    "%.3g at the student's, %d, at which it is imitated",
                    teacher.name,
                    metric,
                    value,
                    teacher.cfg.INPUT.MIN_SIZE_TEST,
                    after[metric],
                    max(self.cfg.INPUT.MIN_SIZE_TRAIN),
                )

    def state_dict(self) -> dict:
        return {**super().state_dict(), "conditions": self._conditions()}

    def _conditions(self) -> dict[str, int]:
        """Values by name of which a warning follows if they differ when the run is resumed.

        Other keys are compared with config.yaml, see :func:`check_output_folder`. The seed is here
        because it is restored from a checkpoint if that file is lost.
        """
        conditions = {"SEED": self.cfg.SEED, "number of processes": comm.get_world_size()}
        with suppress(AttributeError, TypeError):  # a loader that a subclass has built
            conditions["number of training images"] = len(self.data_loader.dataset)
        return conditions

    def load_state_dict(self, state_dict: dict) -> None:
        now = self._conditions()
        for name, before in state_dict.get("conditions", {}).items():
            if name in now and now[name] != before:
                logging.getLogger(__name__).warning(
                    "--resume: the %s was %d when the run stopped, and is %d now: from here on it "
                    "sees other images than without the interruption",
                    name,
                    before,
                    now[name],
                )
        with own_settings(self.optimizer):
            super().load_state_dict(state_dict)
        groups = self.optimizer.param_groups
        self.scheduler.base_lrs = [group["initial_lr"] for group in groups]
        for group, lr in zip(groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        check_torchvision_weights(cfg)
        model = super().build_model(cfg)
        logging.getLogger(__name__).info(
            "%s: %.1f M parameters, from %s",
            cfg.MODEL.META_ARCHITECTURE,
            sum(x.numel() for x in model.parameters()) / 1e6,
            cfg.MODEL.WEIGHTS or "random weights",
        )
        if cfg.INPUT.IGNORE_REGIONS:
            respect_ignore_regions(model)
        if isinstance(model, DistillationMixin):
            model.build_distillation(cfg)
        elif source := cfg.TEACHER.CONFIG_FILE or cfg.TEACHER.DETECTIONS:
            logging.getLogger(__name__).warning(
                "MODEL.META_ARCHITECTURE %s trains without the teacher of %s: to distill, choose "
                "AIDGeneralizedRCNN, AIDRetinaNet, AIDGFL or AIDFCOS",
                cfg.MODEL.META_ARCHITECTURE,
                source,
            )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module):
        optimizer = build_optimizer(cfg, model)
        pause_adapters(optimizer, model)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict:
        """Evaluate a model, see :meth:`DefaultTrainer.test`, with the main process's buffers.

        BatchNorm has separate running statistics in each process, and a checkpoint has those of the
        main process. Broadcasting them ensures that the saved model is the evaluated one.

        Raises:
            AIDError: the config cannot be used, or OUTPUT_DIR cannot be written.
        """
        # Those of teachers are equal, and may be on a device that the processes do not share.
        is_trained = any(x.requires_grad for x in model.parameters())
        if is_trained and comm.get_world_size() > 1:
            for buffer in _unwrap(model).buffers():
                torch.distributed.broadcast(buffer, 0)
        with clear_write_errors(cfg.OUTPUT_DIR), clear_run_errors(cfg):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        logging.getLogger(__name__).info("Evaluating on %s", dataset_name)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        return build_evaluator(dataset_name, folder, cfg.TEST.KEYPOINT_OKS_SIGMAS)


def _check_unlabeled(cfg: CfgNode, batch_size: int) -> None:
    """Check that the run can use images without labels if it has some."""
    if num_unlabeled(cfg, batch_size) == 0:
        return
    architecture = cfg.MODEL.META_ARCHITECTURE
    if plain_architecture(architecture) == architecture:
        raise AIDError(
            f"DATASETS.UNLABELED is set, but MODEL.META_ARCHITECTURE {architecture} has no teacher "
            "to label these images: distill, as configs/AID does, or take UNLABELED.SHARE and "
            "DATASETS.UNLABELED out"
        )
    for key in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            raise AIDError(
                f"DATASETS.UNLABELED is set and MODEL.{key} is on: images without labels get boxes "
                "and classes from a teacher, and nothing else; turn one of the two off"
            )
    if cfg.AID.NORMALIZE:
        raise AIDError(
            "DATASETS.UNLABELED is set and AID.NORMALIZE is on: weights of labels and of a "
            "teacher's detections have no common mean; turn one of the two off"
        )


def _distribute(model: nn.Module) -> nn.Module:
    """Wrap the model in DDP if there are several processes."""
    on_cpu = model.device.type == "cpu"
    synchronized = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if on_cpu and synchronized and comm.get_world_size() > 1:
        raise AIDError(
            "SyncBN needs GPUs: for several processes on the CPU set the NORM keys to naiveSyncBN"
        )
    gpu = None if on_cpu else [comm.get_local_rank()]
    return create_ddp_model(model, broadcast_buffers=False, device_ids=gpu)


def _unwrap(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)
