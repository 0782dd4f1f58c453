"""Dry run: a short trial of a run that estimates its time, memory and disk space."""

import logging
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from statistics import median

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import HookBase, TrainerBase
from detectron2.evaluation import inference_on_dataset
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Subset

from ..checkpoint import clear_load_errors, last_checkpoint, load_file
from ..config import is_program, load_config
from ..data.catalog import datasets_loaded_once
from ..modeling.build import build_detector
from ..modeling.meta_arch import plain_architecture
from ..modeling.teacher import load_teacher_config
from ..modeling.teacher_keys import DETECTOR, named, teacher_kinds
from ..utils.errors import AIDError
from ..utils.files import check_folder_name, clear_write_errors, whole_file
from .estimate import Evaluation, Found, existing_parent, summarize
from .hooks import AverageWeights, SeedStep
from .setup import check_config_file, setup
from .trainer import AIDTrainer

__all__ = ["dry_run", "stand_in_for_teachers"]

# The first iteration includes start-up costs; the estimate uses the second.
ITERATIONS = 2
# Number of images of each test set that a process evaluates.
IMAGES = 4


def dry_run(args: Namespace) -> None:
    """Build a run, try each of its stages, and print an estimate of the whole run.

    Called in all processes of the run. OUTPUT_DIR is neither created nor changed: each process
    writes to a temporary folder instead. Random weights stand in for those of a teacher that is not
    trained yet.

    Args:
        args: of the command line of train_net.py.

    Raises:
        AIDError: the run would fail in its set-up or first iterations.
    """
    if args.eval_only:
        raise AIDError("--dry-run tries a training: leave out --eval-only")
    check_config_file(args.config_file)
    output = load_config(args.config_file, args.opts).OUTPUT_DIR
    check_folder_name("OUTPUT_DIR", output)
    parent = existing_parent(output)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        raise AIDError(f"OUTPUT_DIR {output} cannot be written: {parent} is no writable folder")
    with tempfile.TemporaryDirectory(prefix=".aid_dry_run_", dir=parent) as folder:
        resumed = _stand_in(folder, output) if args.resume else ""
        try:
            with datasets_loaded_once():
                cfg = setup(args, folder)
                stand_in_for_teachers(cfg, folder)
                trial = _Trial(cfg)
                trial.resume_or_load(args.resume)
            measured = trial.try_out()
        except AIDError as error:
            raise AIDError(str(error).replace(folder, output)) from error
        all_measured = comm.gather(measured)
        if comm.is_main_process():
            checkpoint = os.path.join(output, resumed) if resumed else ""
            print(summarize(trial.cfg, all_measured, output, checkpoint), flush=True)


def _stand_in(folder: str, output: str) -> str:
    """Link the last checkpoint of ``output`` into ``folder``; return its name, or "" if none."""
    checkpoint = last_checkpoint(output)
    if not checkpoint:
        return ""
    for name in ("last_checkpoint", "config.yaml"):
        if os.path.isfile(os.path.join(output, name)):
            shutil.copy(os.path.join(output, name), folder)
    source = os.path.abspath(os.path.join(output, checkpoint))
    os.symlink(source, os.path.join(folder, checkpoint))
    return checkpoint


def stand_in_for_teachers(cfg: CfgNode, folder: str) -> None:
    """Write random weights for the teachers of YAML configs that are not trained yet.

    These are named by the file that the training of their config writes. TEACHER.CACHE becomes a
    folder of the dry run.

    Args:
        cfg: of the run; its keys TEACHER.WEIGHTS and MORE_WEIGHTS then name these files.
        folder: of the files.

    Raises:
        AIDError: a teacher's config cannot be used, or a file cannot be written.
    """
    if plain_architecture(cfg.MODEL.META_ARCHITECTURE) == cfg.MODEL.META_ARCHITECTURE:
        return
    weights = [cfg.TEACHER.WEIGHTS, *cfg.TEACHER.MORE_WEIGHTS]
    cfg.defrost()
    if cfg.TEACHER.CACHE:
        cfg.TEACHER.CACHE = os.path.join(folder, "cache")
    for number, kind in enumerate(teacher_kinds(cfg)):
        config_key, config_file = named(cfg, "CONFIG_FILE", "MORE_CONFIG_FILES", number)
        weights_key, path = named(cfg, "WEIGHTS", "MORE_WEIGHTS", number)
        if kind != DETECTOR or is_program(config_file) or os.path.exists(path):
            continue
        teacher = load_teacher_config(config_file, config_key)
        own = os.path.join(teacher.OUTPUT_DIR, "model_final.pth")
        if not path or os.path.abspath(path) != os.path.abspath(own):
            continue  # a mistake, which is reported where the teacher is loaded
        teacher.MODEL.DEVICE = "cpu"
        detector = build_detector(teacher)
        for module in detector.modules():
            # Without statistics a norm scales nothing, and random features would overflow float16.
            is_norm = isinstance(module, _BatchNorm | FrozenBatchNorm2d)
            if is_norm and module.weight is not None:
                nn.init.constant_(module.weight, 0.5)
        weights[number] = os.path.join(folder, f"teacher_{number}.pth")
        with clear_write_errors(folder), whole_file(weights[number], sync=False) as f:
            torch.save({"model": detector.state_dict()}, f)
        if comm.is_main_process():
            logging.getLogger(__name__).warning(
                "%s %s does not exist yet: random weights stand in for it", weights_key, path
            )
    cfg.TEACHER.WEIGHTS, *cfg.TEACHER.MORE_WEIGHTS = weights
    cfg.freeze()


class _Trial(AIDTrainer):
    """Trainer that runs a few iterations and writes a single checkpoint."""

    def build_hooks(self) -> list[HookBase]:
        self.clock = _Clock()
        averaging = [] if self.average is None else [AverageWeights(self.average)]
        return [SeedStep(self.cfg.SEED), *averaging, self.clock]

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "hooks"})

    def try_out(self) -> Found:
        """Measure iterations, evaluation and a checkpoint of the run."""
        measured = Found(self.start_iter, self.clock.steps)
        if self.start_iter < self.max_iter:
            self.evaluations = measured.teachers
            if self.cfg.TEACHER.EVAL_FIRST and self.start_iter == 0:
                self.test_teachers()
            # If imitation starts late, the trial starts there, to include its time and memory.
            schedule = getattr(self.checkpointer.model, "schedule", None)
            first = max(self.start_iter, schedule.start if schedule else 0)
            with self.clear_errors():
                TrainerBase.train(self, first, first + ITERATIONS)
        self.evaluations = measured.student
        self.test(self.cfg, self.model)
        measured.memory = _peak_memory()
        if comm.is_main_process():
            measured.checkpoint = self._try_checkpoint()
        return measured

    def test(self, cfg: CfgNode, model: nn.Module) -> dict:
        """Evaluate a few images of each test set, and record the time for all of them."""
        for name in cfg.DATASETS.TEST:
            loader = self.build_test_loader(cfg, name)
            few = _FewImages(loader)
            start = time.perf_counter()
            inference_on_dataset(model, few, self.build_evaluator(cfg, name))
            once = time.perf_counter() - start - sum(few.seconds)
            images = math.ceil(len(loader.dataset) / comm.get_world_size())
            each = median(few.seconds[1:] or few.seconds or [0.0])  # the first one is a warm-up
            self.evaluations.append(Evaluation(name, images, each, once))
        return {}  # results on a few images mean nothing

    def _try_checkpoint(self) -> tuple[int, float, float]:
        path = os.path.join(self.cfg.OUTPUT_DIR, "dry_run.pth")
        start = time.perf_counter()
        self.checkpointer.save("dry_run", iteration=self.start_iter)
        written = time.perf_counter()
        with clear_load_errors("the checkpoint just written,", path):
            saved = load_file(path)["model"]
        model = self.checkpointer.student_state()
        if not all(torch.equal(saved[k], model[k].cpu()) for k in saved):
            raise AIDError(f"{path} does not hold what was written: check the disk")
        return os.path.getsize(path), written - start, time.perf_counter() - written


class _FewImages:
    """Loader of the first images of a test set, equally many per process, that times each one."""

    def __init__(self, loader: DataLoader):
        number = min(IMAGES * comm.get_world_size(), len(loader.dataset))
        few = Subset(loader.dataset, range(number))
        workers = min(loader.num_workers, IMAGES)
        self._loader = build_detection_test_loader(few, mapper=None, num_workers=workers)
        self.seconds = []

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            start = time.perf_counter()
            yield batch
            self.seconds.append(time.perf_counter() - start)


class _Clock(HookBase):
    """Hook that measures the time (s) and peak memory (MiB) of each iteration."""

    def __init__(self):
        self.steps = []

    def before_step(self) -> None:
        self._start = _now()

    def after_step(self) -> None:
        self.steps.append((_now() - self._start, _peak_memory()))


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_memory() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
