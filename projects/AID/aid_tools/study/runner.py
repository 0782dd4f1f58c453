"""Parallel execution of a study's jobs, one thread each, which can be interrupted and resumed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

from aid.config import load_config
from aid.utils.errors import AIDError

from ..files import clear_file_errors, write_json
from .grid import Job, Scenes, Study
from .results import RESULTS, collect_results, read_object

__all__ = ["check_settings", "is_done", "run_study"]

POLL = 0.5  # seconds
# Settings with which a run was started, in its folder.
SETTINGS = "job.json"


def run_study(study: Study, workers: int) -> list[Job]:
    """Render missing scenes, then run the unfinished jobs.

    A failed job is reported and skipped together with the jobs that need it; its log is kept.

    Args:
        study: paths of scripts and configs are relative to the current folder.
        workers: number of parallel jobs.

    Returns:
        Failed and skipped jobs.

    Raises:
        AIDError: a config cannot be loaded, the scenes cannot be rendered, or a given dataset does
            not exist.
    """
    _check_configs(study.jobs)
    for scenes in dict.fromkeys(job.scenes for job in study.jobs):
        _render(scenes, workers)
    waiting = [job for job in study.jobs if not is_done(job)]
    running: dict[Job, subprocess.Popen] = {}
    failed: list[Job] = []
    bar = tqdm(total=len(study.jobs), initial=len(study.jobs) - len(waiting), unit="run")
    try:
        with bar:
            while waiting or running:
                lost = {job.folder for job in failed}
                for job in [x for x in waiting if lost.intersection(x.needs)]:
                    waiting.remove(job)
                    failed.append(job)
                    bar.write(f"skipped, since a job that it needs failed: {job.folder}")
                for job in _ready(waiting, study.jobs)[: workers - len(running)]:
                    waiting.remove(job)
                    running[job] = _start(job)
                time.sleep(POLL)
                for job in [x for x, process in running.items() if process.poll() is not None]:
                    if reason := _failure(job, running.pop(job).returncode):
                        failed.append(job)
                        bar.write(f"failed: {job.folder}: {reason}")
                    else:
                        bar.update()
    finally:
        for process in running.values():
            process.terminate()
    return failed


def check_settings(jobs: Iterable[Job]) -> None:
    """Check that the runs in the folders of jobs were started with the jobs' settings.

    Runs of versions that did not write their settings are not checked.

    Raises:
        AIDError: the study was changed since a run was started.
    """
    for job in jobs:
        path = os.path.join(job.folder, SETTINGS)
        if not os.path.isfile(path):
            continue
        before, now = read_object(path), _settings(job)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise AIDError(
                    f"{job.folder} was run with {key} {before.get(key)}, which is {now.get(key)} "
                    "in the study now: remove the folder and those of the runs that need it, or "
                    "give what has changed another name"
                )


def _settings(job: Job) -> dict[str, str]:
    options = dict(zip(job.options[::2], job.options[1::2], strict=True))
    return {"config": job.config, "data": job.scenes.folder, **options}


def _check_configs(jobs: Iterable[Job]) -> None:
    """Load a config of each rule with its overrides, before the first run takes hours."""
    one_of_each = {(job.config, job.labels.get("rule")): job for job in jobs if not is_done(job)}
    for job in one_of_each.values():
        load_config(job.config, job.options)


def is_done(job: Job) -> bool:
    """Whether the job's results were collected."""
    return os.path.isfile(os.path.join(job.folder, RESULTS))


def _ready(waiting: Iterable[Job], jobs: Iterable[Job]) -> list[Job]:
    done = {job.folder for job in jobs if is_done(job)}
    return [job for job in waiting if done.issuperset(job.needs)]


def _render(scenes: Scenes, workers: int) -> None:
    if not scenes.is_rendered:
        if not os.path.isdir(scenes.root):
            raise AIDError(
                f"{scenes.root}, a dataset of the study, does not exist: create it first"
            )
        return
    command = [sys.executable, "datasets/make_synthetic_kitti.py", "--output", scenes.root]
    process = subprocess.run([*command, "--workers", str(workers), *scenes.options])
    if process.returncode:
        raise AIDError(f"{scenes.root} could not be rendered: see the error above")


def _start(job: Job) -> subprocess.Popen:
    options = list(job.options)
    if job.constant_of is not None:
        mean = read_object(os.path.join(job.constant_of, RESULTS))["map_mean"]
        options += ["AID.CONSTANT", str(mean)]
    command = [sys.executable, "train_net.py", "--config-file", job.config, "--num-gpus", "0"]
    command += [x for path in job.register for x in ("--register", path)]
    # Many students share a teacher, and images have few views.
    if "TEACHER.WEIGHTS" in options and "TEACHER.CACHE" not in options:
        weights = options[options.index("TEACHER.WEIGHTS") + 1]
        options += ["TEACHER.CACHE", os.path.join(os.path.dirname(weights), "features")]
    command += ["--resume", *options, "VIS_PERIOD", "0", "OUTPUT_DIR", job.folder]
    environment = {**os.environ, "DETECTRON2_DATASETS": job.scenes.folder}
    # Parallel runs of one thread each are faster than one run of several threads.
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    log_file = os.path.join(job.folder, "stdout.txt")
    with clear_file_errors(log_file):
        os.makedirs(job.folder, exist_ok=True)
        write_json(os.path.join(job.folder, SETTINGS), _settings(job))
        with open(log_file, "w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _failure(job: Job, status: int) -> str:
    """Collect the results of a job that has ended; the reason why there are none, or ""."""
    if status:
        return _last_line(job)
    try:
        collect_results(job)
    except AIDError as error:
        return str(error)
    return ""


def _last_line(job: Job) -> str:
    with open(os.path.join(job.folder, "stdout.txt"), errors="replace") as f:
        lines = f.read().split()
    return " ".join(lines[-40:])
