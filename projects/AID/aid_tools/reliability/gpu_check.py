"""Check of what runs on a GPU only: tests, trainings, tools and the benchmark as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from tempfile import TemporaryDirectory, TemporaryFile

import torch

from aid.utils.errors import AIDError
from aid.utils.files import check_writable

from ..files import write_json

__all__ = ["check_gpu"]

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
FIGURES = "figures.json"
# Last lines of a failed step that are kept.
LINES = 15


@dataclass(frozen=True)
class Step:
    """A command of the check, or its result.

    Attributes:
        name: what is checked.
        command: arguments of Python, beginning with a script or ``-m``.
        outcome, seconds, lines: outcome, duration, and the last lines of output if it failed, or
            why it was skipped.
        figures: content of the file ``figures.json`` that the benchmark writes.
    """

    name: str
    command: tuple[str, ...]
    outcome: str = SKIPPED
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    figures: dict | None = None


@dataclass(frozen=True)
class Size:
    """Amount of work: numbers of images and iterations, and arguments of the benchmark."""

    scenes: tuple[str, ...]
    iterations: int
    benchmark: tuple[str, ...]


SIZES = {
    "cuda": Size(
        ("--train", "60", "--val", "8"),
        40,
        ("configs/AID/faster_rcnn_R18_from_R101.yaml", "--batch", "8", "--size", "370x1242"),
    ),
    "cpu": Size(
        ("--train", "8", "--val", "2"),
        2,
        ("configs/Quickstart/faster_rcnn_R18_from_R34.yaml", "--batch", "1", "--size", "64x96"),
    ),
}


def check_gpu(root: str, output: str, device: str, seconds: float) -> bool:
    """Run all steps, print a line for each and write gpu_check.json; a failed step stops no other.

    Args:
        root: root of the repository.
        output: output folder.
        device: "cuda", or "cpu" for a rehearsal with less work.
        seconds: time limit of all steps; those that are left then are skipped.

    Returns:
        Whether no step failed or was skipped for lack of time.

    Raises:
        AIDError: there is no GPU, pytest is missing, or the output folder cannot be written.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise AIDError(
            f"torch {torch.__version__} finds no GPU here: --device cpu rehearses the check"
        )
    if find_spec("pytest") is None:
        raise AIDError(f"pytest is not installed for {sys.executable}: run `make install`")
    path = os.path.join(output, "gpu_check.json")
    check_writable(path)
    report = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "steps": [],
    }
    end, complete = time.monotonic() + seconds, True
    with TemporaryDirectory(prefix="aid_gpu_check_") as folder:
        for step in _steps(folder, device):
            left = end - time.monotonic()
            if left <= 0:
                complete = False
                step = replace(step, lines=[f"--seconds {seconds:g} are over"])
            else:
                step = _run(step, root, folder, device, left)
            complete &= step.outcome != FAILED
            reason = f": {step.lines[-1]}" if step.lines else ""
            print(f"{step.outcome} {step.seconds:6.1f} s  {step.name}{reason}", flush=True)
            report["steps"].append(asdict(step))
            write_json(path, report)
    return complete


def _steps(folder: str, device: str) -> Iterator[Step]:
    """The steps, in their order; all files are written below ``folder``."""
    size = SIZES[device]
    on_cpu = device == "cpu"
    scenes = os.path.join(folder, "datasets", "synthetic_kitti")
    student = os.path.join(folder, "student")

    def training(name: str, config: str, iterations: int, *options: str) -> tuple[str, ...]:
        weights = os.path.join(folder, "teacher", "model_final.pth")
        keys = ("OUTPUT_DIR", os.path.join(folder, name), "SOLVER.MAX_ITER", str(iterations))
        config = f"configs/Quickstart/faster_rcnn_{config}.yaml"
        flags = [x for x in options if x.startswith("--")] + ["--num-gpus", "0"] * on_cpu
        keys += tuple(x for x in options if not x.startswith("--"))
        return ("train_net.py", "--config-file", config, *flags, *keys, "TEACHER.WEIGHTS", weights)

    rendering = ("datasets/make_synthetic_kitti.py", "--output", scenes, *size.scenes)
    yield Step("rendered scenes", rendering)
    yield Step("tests", ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"))
    n = size.iterations
    yield Step("training of a teacher", training("teacher", "R34_FPN", n))
    yield Step("distillation", training("student", "R18_from_R34", n))
    yield Step("resuming", training("student", "R18_from_R34", 2 * n, "--resume"))
    amp = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16" if on_cpu else "float16")
    yield Step("distillation in mixed precision", training("amp", "R18_from_R34", n, *amp))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    yield Step("distillation under torchrun", torchrun + training("one", "R18_from_R34", n))
    images = os.path.join(scenes, "training", "image_2", "00000*.png")
    output = ("--config-file", student, "--output")
    predictions = (*output, os.path.join(folder, "predictions"), "--device", device)
    yield Step("detection", ("tools/predict.py", *predictions, images))
    export = (*output, os.path.join(folder, "export"), "--repeat", "3", "--no-teacher")
    yield Step("export", ("tools/export_model.py", *export, "--num-images", "2"))
    options = ("--device", device, "--seconds", "20", "--no-memory")
    options += ("--json", os.path.join(folder, FIGURES))
    benchmark = ("tools/benchmark.py", "--config-file", *size.benchmark, *options)
    yield Step("benchmark", benchmark)
    yield Step("benchmark in mixed precision", (*benchmark, *amp))


def _run(step: Step, root: str, folder: str, device: str, limit: float) -> Step:
    environment = {
        **os.environ,
        "AID_TEST_DEVICE": device,
        "DETECTRON2_DATASETS": os.path.join(folder, "datasets"),
    }
    start = time.monotonic()
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            ending = [] if code == 0 else [f"exit code {code}"]
        except subprocess.TimeoutExpired:
            ending = [f"stopped after {limit:.0f} s, at the end of --seconds"]
        finally:
            if process.poll() is None:  # with the processes that it has started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        lines = [x for x in log.read().splitlines() if x.strip()][-LINES:] if ending else []
    seconds = round(time.monotonic() - start, 1)
    figures, path = None, os.path.join(folder, FIGURES)
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as f:
            figures = json.load(f)
        os.remove(path)
    outcome = FAILED if ending else PASSED
    return replace(step, outcome=outcome, seconds=seconds, lines=lines + ending, figures=figures)
