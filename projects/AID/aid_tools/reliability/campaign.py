"""Kills trainings at seeded random moments, resumes them, and compares how they end."""

import json
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

from .invariants import BrokenPromise, check_folder, compare_folders, next_iteration
from .victim import Victim

__all__ = ["run_campaign"]

TEACHER = "configs/Quickstart/faster_rcnn_R34_FPN.yaml"
STUDENT = "configs/Quickstart/faster_rcnn_R18_from_R34.yaml"
SCENES = ("--train", "16", "--val", "4")
PERIOD = 8  # iterations from one checkpoint to the next
# An iteration of 0.06 s, so that an interpreter's start of 4 s is most of what a kill costs.
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
# Of all kills, those that wait for a write, and for how long they let it go on.
WRITES = 0.5
INTO_WRITE = 0.005  # seconds, at most


def run_campaign(
    root: str, output: str, kills: int, workers: tuple[int, ...] = (0, 2), seed: int = 0
) -> dict:
    """Train a small AID student without interruption, then with kills, and compare.

    Args:
        root: of the repository, with its scripts and configs.
        output: folder for the runs, in ``crash_campaign/`` there, and crash_campaign.json.
        kills: their number, dealt out to ``workers``.
        workers: numbers of loader workers; for each a training is killed until its kills are spent.
        seed: of the moments.

    Returns:
        What is written to crash_campaign.json. ``failure`` is what did not hold, or None.

    Raises:
        AIDError: no kill for one of ``workers``, a folder that cannot be written, or no scenes.
    """
    if kills < len(workers):
        raise AIDError(f"--kills is {kills}: give at least one for each of workers {workers}")
    folder = os.path.join(output, "crash_campaign")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.makedirs(folder)
    except OSError as error:
        raise AIDError(f"--output {output} cannot be written: {error.strerror}") from error
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
    with open(os.path.join(output, "crash_campaign.json"), "w") as f:
        json.dump(campaign.result, f, indent=1)
    return campaign.result


class _Campaign:
    """The runs of a campaign, and what was counted."""

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
        """Note a promise that was broken, and whether checkpoints were equal if none was."""
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
        """Train the student, kill it so many times, and compare its end with that of the other."""
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
        # Kills come one checkpoint after the other, so that the run is not over before the last.
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
                "other", f"{folder} went on from iteration {victim.start_iter}, not {expected}"
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
        os.makedirs(folder, exist_ok=True)
        script, config = (os.path.join(self._root, path) for path in ("train_net.py", config))
        command = [sys.executable, script, "--config-file", config, "--num-gpus", "0", "--resume"]
        keys = {**SMALL, **options, "OUTPUT_DIR": folder}
        command += [*(str(part) for item in keys.items() for part in item)]
        return Victim(command, self._environment, folder)
