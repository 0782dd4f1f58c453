"""Finished runs, read from their output folders."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from aid.checkpoint import StrictCheckpointer, check_kinds, clear_load_errors, load_file
from aid.config import load_config
from aid.modeling.build import build_detector
from aid.modeling.meta_arch import DistillationMixin
from aid.modeling.weighting import build_weighting
from aid.utils.commands import train_command
from aid.utils.errors import AIDError

__all__ = ["Run", "load_run", "load_runs", "read_metrics", "roles"]


@dataclass(frozen=True)
class Run:
    """Finished run of ``train_net.py``.

    Attributes:
        folder: path of the output folder.
        cfg: config of the run; MODEL.DEVICE is available on this machine.
        metrics: content of metrics.json, one entry per logged iteration.
        cached: whether TEACHER.CACHE was set in training; ``cfg`` does not have it.
    """

    folder: str
    cfg: CfgNode
    metrics: list[dict]
    cached: bool = False

    @property
    def name(self) -> str:
        return os.path.basename(os.path.normpath(self.folder))

    @property
    def weights(self) -> str:
        return os.path.join(self.folder, "model_final.pth")

    @property
    def final_weights(self) -> str:
        """Real path of the run's weights."""
        return os.path.realpath(self.weights)

    @property
    def teacher_weights(self) -> set[str]:
        """Real paths of the teachers' weights; empty for a run without a teacher."""
        if not self.is_distilled:
            return set()
        teacher = self.cfg.TEACHER
        return {os.path.realpath(path) for path in (teacher.WEIGHTS, *teacher.MORE_WEIGHTS)}

    @property
    def class_maps(self) -> list[list[str]]:
        """TEACHER.CLASS_MAP of each teacher; empty for a run without a teacher."""
        if not self.is_distilled:
            return []
        teacher = self.cfg.TEACHER
        more = teacher.MORE_CLASS_MAPS or [[] for _ in teacher.MORE_WEIGHTS]
        return [teacher.CLASS_MAP, *more]

    @property
    def mapped_teachers(self) -> set[str]:
        """Real paths of the weights of teachers with classes of their own."""
        teacher = self.cfg.TEACHER
        pairs = zip((teacher.WEIGHTS, *teacher.MORE_WEIGHTS), self.class_maps, strict=False)
        return {os.path.realpath(path) for path, class_map in pairs if class_map}

    def evaluated_teacher(self, number: int) -> "Run | None":
        """Evaluation of a teacher by TEACHER.EVAL_FIRST, on the student's classes; None if off.

        Args:
            number: of the teacher, from 0.

        Raises:
            AIDError: its metrics.json is not what train_net.py writes.
        """
        folder = os.path.join(self.folder, f"teacher_{number}" if number else "teacher")
        path = os.path.join(folder, "metrics.json")
        if not self.cfg.TEACHER.EVAL_FIRST or not os.path.isfile(path):
            return None
        return Run(folder, self.cfg, read_metrics(path, max_iter=0))

    @property
    def is_distilled(self) -> bool:
        return issubclass(
            META_ARCH_REGISTRY.get(self.cfg.MODEL.META_ARCHITECTURE), DistillationMixin
        )

    @property
    def classes(self) -> list[str]:
        return MetadataCatalog.get(self.test_set).thing_classes

    @property
    def test_set(self) -> str:
        """First test set with labels, on which runs are compared."""
        tested = self.cfg.DATASETS.TEST
        labeled = (x for x in tested if MetadataCatalog.get(x).get("kitti_labels", "") is not None)
        return next(labeled, tested[0])

    def metrics_at_end(self, task: str) -> dict[str, float]:
        """{name: metric} of the last evaluation on the test set.

        Args:
            task: "bbox", "segm" or "kitti".
        """
        prefix = self._prefix(task)
        lines = (x for x in reversed(self.metrics) if any(k.startswith(prefix) for k in x))
        last = next(lines, {})
        return {k.removeprefix(prefix): v for k, v in last.items() if k.startswith(prefix)}

    def history(self, task: str, name: str) -> list[tuple[int, float]]:
        """[(iteration, value)] of a metric on the test set, for every evaluation."""
        key = self._prefix(task) + name
        return [(line["iteration"], line[key]) for line in self.metrics if key in line]

    def _prefix(self, task: str) -> str:
        return f"{self.test_set}/{task}/" if len(self.cfg.DATASETS.TEST) > 1 else f"{task}/"

    @cached_property
    def results(self) -> dict[str, float]:
        """COCO metrics at the end of the run, in percent.

        AP and AP50; "mask AP" for a detector with masks. NaN if missing.
        """
        metrics = self.metrics_at_end("bbox")
        results = {name: metrics.get(name, math.nan) for name in ("AP", "AP50")}
        if self.cfg.MODEL.MASK_ON:
            results["mask AP"] = self.metrics_at_end("segm").get("AP", math.nan)
        return results

    @property
    def ap(self) -> float:
        """COCO's AP; 0 if missing or, in runs of earlier versions without detections, NaN."""
        return 0.0 if math.isnan(self.results["AP"]) else self.results["AP"]

    @cached_property
    def class_results(self) -> dict[str, float]:
        """COCO's AP of each class at the end of the run, in percent; NaN if missing."""
        metrics = self.metrics_at_end("bbox")
        if len(self.classes) == 1:  # for which Detectron2 writes the AP only
            return {self.classes[0]: self.results["AP"]}
        return {name: metrics.get(f"AP-{name}", math.nan) for name in self.classes}

    @property
    def seconds_per_iteration(self) -> float:
        """Median time of an iteration; NaN if the run was too short to be timed."""
        times = [line["time"] for line in self.metrics if "time" in line]
        return median(times) if times else math.nan

    @property
    def training_seconds(self) -> float:
        """Time of all iterations, without evaluations; NaN if the run was too short to be timed.

        Each logged time is weighted by the number of iterations since the previous one, since
        iterations differ in length if a schedule runs the teacher for a part of the training.
        """
        total, done = 0.0, 0
        for line in self.metrics:
            if "time" in line:
                total += line["time"] * (line["iteration"] + 1 - done)
                done = line["iteration"] + 1
        return total / done * self.cfg.SOLVER.MAX_ITER if done else math.nan

    @property
    def has_comparable_time(self) -> bool:
        """Whether the training time includes all work of the teacher, not read from a cache."""
        return not (self.cached and self.is_distilled)

    @property
    def weighs_instances(self) -> bool:
        """Whether imitation weights differ between instances."""
        if not self.is_distilled or self.cfg.AID.GRANULARITY != "instance":
            return False
        return build_weighting(self.cfg).requires_stats

    @property
    def weighting_memory(self) -> dict[str, torch.Tensor]:
        """State of the weighting rule at the end of the run, by name.

        Raises:
            AIDError: the checkpoint cannot be read.
        """
        prefix = "weighting."
        with clear_load_errors("weights", self.weights):
            saved = load_file(self.weights)["distillation"]
            memory = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
            check_kinds(memory, build_weighting(self.cfg).state_dict())
        return memory

    def build(self) -> nn.Module:
        """Build the trained detector, in eval mode, without a teacher.

        Raises:
            AIDError: the config cannot be used, or the weights do not fit it.
        """
        model = build_detector(self.cfg)
        StrictCheckpointer(model, "weights").load(self.weights)
        return model.eval()


def load_run(folder: str) -> Run:
    """Read an output folder.

    Raises:
        AIDError: a file is missing, a dataset or the detector is not registered, or the run was not
            evaluated.
    """
    paths = [os.path.join(folder, f) for f in ("config.yaml", "metrics.json", "model_final.pth")]
    for path in paths:
        if not os.path.isfile(path):
            raise AIDError(f"{path} does not exist: {folder} is not a finished run of train_net.py")
    cfg = load_config(paths[0])
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cached = bool(cfg.TEACHER.CACHE)
    cfg.TEACHER.DEVICE = cfg.TEACHER.CACHE = ""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        raise AIDError(
            f"{paths[0]}: MODEL.META_ARCHITECTURE {name} is not registered: add --register FILE, "
            "as for training"
        )
    metrics = read_metrics(paths[1], cfg.SOLVER.MAX_ITER)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            raise AIDError(
                f"{paths[0]}: dataset {name!r} is not registered: add --register FILE, as for "
                "training"
            )
    command = train_command(paths[0], cfg.MODEL.DEVICE)
    if not cfg.DATASETS.TEST:
        raise AIDError(
            f"{paths[0]}: DATASETS.TEST is empty, so that the run was never evaluated: run "
            f"`{command} --resume DATASETS.TEST '(\"NAME\",)'`"
        )
    run = Run(folder, cfg, metrics, cached)
    if not (run.metrics_at_end("bbox") or run.metrics_at_end("kitti")):
        raise AIDError(
            f"{paths[1]} contains no evaluation: run `{command} --resume`, which evaluates a "
            "finished run"
        )
    return run


def load_runs(folders: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Read the output folders that can be compared with the first readable one.

    A teacher whose classes are mapped is not the first one: it was tested on its own classes.

    Returns:
        The runs, and for each skipped folder a line with the reason.

    Raises:
        AIDError: a folder does not exist, or no folder contains a finished run.
    """
    read, left_out, first_error = [], [], None
    for folder in folders:
        if not os.path.isdir(folder):
            raise AIDError(f"folder {folder} does not exist: give output folders of train_net.py")
        try:
            read.append(load_run(folder))
        except AIDError as error:
            first_error = first_error or error
            left_out.append(f"Left out: {error}.")
    if not read:
        raise first_error
    mapped = set().union(*(run.mapped_teachers for run in read))
    first = next((run for run in read if run.final_weights not in mapped), read[0])
    for run in read:
        if run.test_set != first.test_set:
            reason = "results on different datasets are not comparable"
            if run.final_weights in mapped:
                reason = "it is a teacher whose classes TEACHER.CLASS_MAP maps to the student's"
            left_out.append(
                f"Left out: {run.folder} was tested on {run.test_set}, {first.folder} on "
                f"{first.test_set}: {reason}."
            )
    return [run for run in read if run.test_set == first.test_set], left_out


def read_metrics(path: str, max_iter: int) -> list[dict]:
    """Read a metrics.json up to an iteration, one entry per iteration, see :attr:`Run.metrics`.

    Raises:
        AIDError: the file is not what train_net.py writes.
    """
    try:
        with open(path) as f:
            return _by_iteration(map(json.loads, f.read().splitlines()), max_iter)
    except (ValueError, RecursionError) as error:
        raise AIDError(f"{path} is not one JSON object per line: {error}") from error


def _by_iteration(lines: Iterable[dict], max_iter: int) -> list[dict]:
    """Merge the lines of each iteration; a resumed run logs some iterations twice.

    From an iteration that is lower than the one before, another run begins, resumed or new.

    Raises:
        ValueError: a line is not what train_net.py writes.
    """
    merged: dict[int, dict] = {}
    last = -1
    for number, line in enumerate(lines, start=1):
        known = isinstance(line, dict) and isinstance(line.get("iteration"), int)
        if not known or not all(isinstance(x, int | float | None) for x in line.values()):
            raise ValueError(f"line {number} has no iteration, or values that are no numbers")
        if line["iteration"] < last:
            merged = {k: x for k, x in merged.items() if k < line["iteration"]}
        last = line["iteration"]
        if last <= max_iter:
            values = {k: math.nan if v is None else v for k, v in line.items()}
            merged.setdefault(last, {}).update(values)
    return [merged[iteration] for iteration in sorted(merged)]


def roles(runs: list[Run]) -> list[str]:
    """Role of each run: teacher, plain student, or kind of distilled student."""
    teachers = {path for run in runs for path in run.teacher_weights}
    return [_role(run, teachers) for run in runs]


def _role(run: Run, teachers: set[str]) -> str:
    if not run.is_distilled:
        return "teacher" if run.final_weights in teachers else "plain"
    rule, granularity = run.cfg.AID.WEIGHTING, run.cfg.AID.GRANULARITY
    if rule == "ConstantWeighting":
        return f"constant weight {run.cfg.AID.CONSTANT:g}"
    if granularity == "none" or run.cfg.AID.ALPHA == 0:
        return "plain distillation"
    return f"AID by {granularity}" + ("" if rule == "ExponentialWeighting" else f", {rule}")
