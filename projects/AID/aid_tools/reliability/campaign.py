"""Crash campaign: kill training runs at seeded random moments, resume them, compare the results."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from aid.utils.errors import AIDError

from ..files import clear_file_errors, write_json
from .invariants import BrokenPromise, check_folder, compare_folders, next_iteration
from .victim import Victim

__all__ = ["run_campaign"]

TEACHER = "configs/Quickstart/faster_rcnn_R34_FPN.yaml"
STUDENT = "configs/Quickstart/faster_rcnn_R18_from_R34.yaml"
SCENES = ("--train", "16", "--val", "4")
PERIOD = 8  # iterations between checkpoints
# Small model: 0.06 s per iteration, so that the start of the process (4 s) dominates the run time.
SMALL = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "INPUT.MIN_SIZE_TRAIN": (48,),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINT_PERIOD": PERIOD,
    "DATASETS.TEST": (),
    "VIS_PERIOD": 0,
}
# Share of kills during the write of a checkpoint, and their maximum delay after its start.
WRITES = 0.5
INTO_WRITE = 0.005  # seconds


def run_campaign(
    root: str, output: str, kills: int, workers: tuple[int, ...] = (0, 2), seed: int = 0
) -> dict:
    """Train a small AID student without interruption and with kills, and compare the results.

    Args:
        root: root of the repository, with its scripts and configs.
        output: output folder, for the runs in ``crash_campaign/`` and crash_campaign.json.
        kills: total number of kills, divided among ``workers``.
        workers: numbers of loader workers. One run is killed and resumed for each of them.
        seed: seed of the moments of the kills.

    Returns:
        Content of crash_campaign.json. ``failure`` describes the violated invariant, or is None.

    Raises:
        AIDError: there are fewer kills than ``workers``, a file cannot be written, or the
            scenes cannot be rendered.
    """
    if kills < len(workers):
        raise AIDError(f"--kills is {kills}: give at least one for each of workers {workers}")
    folder = os.path.join(output, "crash_campaign")
    shutil.rmtree(folder, ignore_errors=True)
    with clear_file_errors(output, "--output"):
        os.makedirs(folder)
    shares = [kills // len(workers) + (i < kills % len(workers)) for i in range(len(workers))]
    campaign = _Campaign(root, folder, iterations=PERIOD * (max(shares) + 4), seed=seed)
    campaign.result["workers"] = list(workers)
    start = time.monotonic()
    with tqdm(total=kills, unit="kill") as bar, campaign.record_failure():
        bar.set_description("scenes, teacher, uninterrupted run")
        campaign.prepare()
        for number, share in zip(workers, shares, strict=True):
            bar.set_description(f"{number} loader workers")
            campaign.kill_and_resume(number, share, bar)
    campaign.result["seconds"] = round(time.monotonic() - start, 1)
    write_json(os.path.join(output, "crash_campaign.json"), campaign.result)
    return campaign.result


class _Campaign:
    """Runs and counters of a campaign."""

    def __init__(self, root: str, folder: str, iterations: int, seed: int):
        self.result = {
            "kills": 0,
            "kills_during_write": 0,
            "unreadable_checkpoints": 0,
            "lost_checkpoints": 0,
            "compared_checkpoints": 0,
            "bit_equal": False,
            "failure": None,
            "iterations": iterations,
            "checkpoint_period": PERIOD,
            "seed": seed,
        }
        self._root = root
        self._folder = folder
        self._teacher = os.path.join(folder, "teacher")
        self._whole = os.path.join(folder, "uninterrupted")
        self._random = random.Random(seed)
        datasets = os.path.join(folder, "datasets")
        self._scenes = os.path.join(datasets, "synthetic_kitti")
        self._environment = {**os.environ, "DETECTRON2_DATASETS": datasets, "OMP_NUM_THREADS": "1"}
        self._period = 0.0  # seconds

    @contextmanager
    def record_failure(self) -> Iterator[None]:
        """Record the violated invariant, or that all checkpoints are bit-equal."""
        try:
            yield
            self.result["bit_equal"] = True
        except BrokenPromise as broken:
            self.result["failure"] = str(broken)
            if f"{broken.kind}_checkpoints" in self.result:
                self.result[f"{broken.kind}_checkpoints"] += 1

    def prepare(self) -> None:
        """Render scenes, train a teacher, and train the student without interruption."""
        script = os.path.join(self._root, "datasets/make_synthetic_kitti.py")
        render = [sys.executable, script, "--output", self._scenes, *SCENES]
        done = subprocess.run(render, capture_output=True, text=True)
        if done.returncode:
            raise AIDError(f"{self._scenes} cannot be rendered: {done.stderr.strip()}")
        with self._start(TEACHER, self._teacher, {"SOLVER.MAX_ITER": PERIOD}) as teacher:
            teacher.wait_for_end()
        with self._start_student(self._whole, workers=0) as whole:
            start = time.monotonic()
            whole.wait_for_end()
        self._period = (time.monotonic() - start) * PERIOD / self.result["iterations"]

    def kill_and_resume(self, workers: int, kills: int, bar: tqdm) -> None:
        """Kill and resume a student ``kills`` times, then compare it with the uninterrupted run."""
        folder = os.path.join(self._folder, f"workers_{workers}")
        seen = set()
        for number in range(kills):
            with self._resume(folder, workers) as victim:
                self._wait_for_moment(victim, number)
                victim.kill()
            self.result["kills"] += 1
            self.result["kills_during_write"] += victim.is_writing()
            seen |= victim.seen
            check_folder(folder, seen)
            bar.update()
        with self._resume(folder, workers) as survivor:
            survivor.wait_for_end()
        self.result["compared_checkpoints"] += compare_folders(self._whole, folder)

    def _wait_for_moment(self, victim: Victim, number: int) -> None:
        # Allow one more checkpoint per kill, so that the run does not end before the last kill.
        victim.wait_for_checkpoints(number)
        longest = self._period
        if self._random.random() < WRITES:
            victim.wait_for_write()
            longest = INTO_WRITE
        victim.wait(self._random.uniform(0, longest), at_most=number + 2)

    def _resume(self, folder: str, workers: int) -> Victim:
        expected = next_iteration(folder)
        victim = self._start_student(folder, workers)
        if victim.start_iter != expected:
            victim.kill()
            raise BrokenPromise(
                "other", f"{folder} resumed from iteration {victim.start_iter}, not {expected}"
            )
        return victim

    def _start_student(self, folder: str, workers: int) -> Victim:
        options = {
            "TEACHER.CONFIG_FILE": os.path.join(self._teacher, "config.yaml"),
            "TEACHER.WEIGHTS": os.path.join(self._teacher, "model_final.pth"),
            "SOLVER.MAX_ITER": self.result["iterations"],
            "DATALOADER.NUM_WORKERS": workers,
        }
        return self._start(STUDENT, folder, options)

    def _start(self, config: str, folder: str, options: dict[str, object]) -> Victim:
        script, config = (os.path.join(self._root, path) for path in ("train_net.py", config))
        command = [sys.executable, script, "--config-file", config, "--num-gpus", "0", "--resume"]
        keys = {**SMALL, **options, "OUTPUT_DIR": folder}
        command += [*(str(part) for item in keys.items() for part in item)]
        with clear_file_errors(folder):
            os.makedirs(folder, exist_ok=True)
            return Victim(command, self._environment, folder)
