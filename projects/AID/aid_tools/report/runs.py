"""A finished run, read back from its output folder."""

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
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from aid.checkpoint import StrictCheckpointer, clear_load_errors, load_file
from aid.config import load_config
from aid.modeling.meta_arch import DistillationMixin
from aid.modeling.weighting import build_weighting
from aid.utils.errors import AIDError

__all__ = ["Run", "load_run", "load_runs", "roles"]


@dataclass(frozen=True)
class Run:
    """What ``train_net.py`` left in an output folder.

    Attributes:
        folder: path of the folder.
        cfg: its config; MODEL.DEVICE is one that this machine has.
        metrics: of its metrics.json, one entry for each iteration that was logged.
    """

    folder: str
    cfg: CfgNode
    metrics: list[dict]

    @property
    def name(self) -> str:
        return os.path.basename(os.path.normpath(self.folder))

    @property
    def weights(self) -> str:
        return os.path.join(self.folder, "model_final.pth")

    @property
    def final_weights(self) -> str:
        """The real path of its weights."""
        return os.path.realpath(self.weights)

    @property
    def teacher_weights(self) -> set[str]:
        """Real paths of the weights that taught it; empty for a run without a teacher."""
        if not self.is_distilled:
            return set()
        teacher = self.cfg.TEACHER
        return {os.path.realpath(path) for path in (teacher.WEIGHTS, *teacher.MORE_WEIGHTS)}

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
        """The first test set that has labels, by which the run is judged."""
        tested = self.cfg.DATASETS.TEST
        labelled = (x for x in tested if MetadataCatalog.get(x).get("kitti_labels", "") is not None)
        return next(labelled, tested[0])

    def metrics_at_end(self, task: str) -> dict[str, float]:
        """What the last evaluation found on the test set for "bbox", "segm" or "kitti", by name."""
        prefix = self._prefix(task)
        lines = (x for x in reversed(self.metrics) if any(k.startswith(prefix) for k in x))
        last = next(lines, {})
        return {k.removeprefix(prefix): v for k, v in last.items() if k.startswith(prefix)}

    def history(self, task: str, name: str) -> list[tuple[int, float]]:
        """[(iteration, value)] of a metric on the test set, of every evaluation."""
        key = self._prefix(task) + name
        return [(line["iteration"], line[key]) for line in self.metrics if key in line]

    def _prefix(self, task: str) -> str:
        return f"{self.test_set}/{task}/" if len(self.cfg.DATASETS.TEST) > 1 else f"{task}/"

    @cached_property
    def results(self) -> dict[str, float]:
        """COCO's box metrics at the end of the run, in percent: AP, AP50, and AP of each class;
        for a detector with masks also their AP, "mask AP". NaN where there is none."""
        found = self.metrics_at_end("bbox")
        keys = {"AP": "AP", "AP50": "AP50", **{name: f"AP-{name}" for name in self.classes}}
        results = {name: found.get(key, math.nan) for name, key in keys.items()}
        if self.cfg.MODEL.MASK_ON:
            results["mask AP"] = self.metrics_at_end("segm").get("AP", math.nan)
        return results

    @property
    def seconds_per_iteration(self) -> float:
        """Median over the run; NaN if it was too short to be timed."""
        times = [line["time"] for line in self.metrics if "time" in line]
        return median(times) if times else math.nan

    @property
    def training_seconds(self) -> float:
        """Time of all iterations, without evaluations; NaN if the run was too short to be timed.

        Each logged time stands for the iterations since the one before: a schedule that runs the
        teacher for a part of the training makes iterations of two lengths.
        """
        total, done = 0.0, 0
        for line in self.metrics:
            if "time" in line:
                total += line["time"] * (line["iteration"] + 1 - done)
                done = line["iteration"] + 1
        return total / done * self.cfg.SOLVER.MAX_ITER if done else math.nan

    @property
    def weighs_instances(self) -> bool:
        """Whether each instance has a weight of its own."""
        if not self.is_distilled or self.cfg.AID.GRANULARITY != "instance":
            return False
        return build_weighting(self.cfg).requires_stats

    @property
    def weighting_memory(self) -> dict[str, torch.Tensor]:
        """State of the weighting rule at the end of the run.

        Raises:
            AIDError: the checkpoint cannot be read.
        """
        with clear_load_errors("weights", self.weights):
            saved = load_file(self.weights)["distillation"]
        prefix = "weighting."
        return {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}

    def build(self) -> nn.Module:
        """The trained detector, in eval mode, without a teacher.

        Raises:
            AIDError: the weights do not fit the config.
        """
        model = build_model(self.cfg)
        StrictCheckpointer(model, "weights").load(self.weights)
        return model.eval()


def load_run(folder: str) -> Run:
    """Read an output folder.

    Raises:
        AIDError: a file is missing, a dataset is not registered, or the run was not evaluated.
    """
    paths = [os.path.join(folder, f) for f in ("config.yaml", "metrics.json", "model_final.pth")]
    for path in paths:
        if not os.path.isfile(path):
            raise AIDError(f"{path} does not exist: {folder} is no finished run of train_net.py")
    cfg = load_config(paths[0])
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    with open(paths[1]) as f:
        lines = f.read().splitlines()
    try:
        metrics = _by_iteration(map(json.loads, lines), cfg.SOLVER.MAX_ITER)
    except json.JSONDecodeError as error:
        raise AIDError(f"{paths[1]} is not one JSON object a line: {error}") from error
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            raise AIDError(
                f"{paths[0]}: dataset {name!r} is not registered here: add --register FILE, as "
                "for training"
            )
    run = Run(folder, cfg, metrics)
    if not (run.metrics_at_end("bbox") or run.metrics_at_end("kitti")):
        raise AIDError(
            f"{paths[1]} holds no evaluation: run train_net.py with --config-file "
            f"{paths[0]} --resume, which evaluates a finished run"
        )
    return run


def load_runs(folders: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Read output folders, as far as they can be compared with the first that can be read.

    Returns:
        The runs, and for each of the other folders a line that says why it is left out.

    Raises:
        AIDError: a folder does not exist, or no folder holds a finished run.
    """
    runs, left_out, first_error = [], [], None
    for folder in folders:
        if not os.path.isdir(folder):
            raise AIDError(f"folder {folder} does not exist: name output folders of train_net.py")
        try:
            run = load_run(folder)
        except AIDError as error:
            first_error = first_error or error
            left_out.append(f"Left out: {error}.")
            continue
        if runs and run.test_set != runs[0].test_set:
            left_out.append(
                f"Left out: {folder} was tested on {run.test_set}, {runs[0].folder} on "
                f"{runs[0].test_set}: results on different datasets are not comparable."
            )
        else:
            runs.append(run)
    if not runs:
        raise first_error
    return runs, left_out


def _by_iteration(lines: Iterable[dict], max_iter: int) -> list[dict]:
    """One entry for each iteration: the file also holds what an interrupted run did twice."""
    found = {}
    for line in lines:
        if line["iteration"] <= max_iter:
            found.setdefault(line["iteration"], {}).update(line)
    return [found[iteration] for iteration in sorted(found)]


def roles(runs: list[Run]) -> list[str]:
    """What each run is among the others: teacher, plain, or distilled and how."""
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
