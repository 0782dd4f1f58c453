"""Training of every Quickstart config on rendered scenes, in minutes: `make test-slow`."""

import json
import os
import subprocess
import sys

import pytest

TEACHERS = tuple(f"{x}_R34_FPN" for x in ("faster_rcnn", "retinanet", "gfl", "fcos"))
STUDENTS = ("R18_FPN", "R18_from_R34_none", "R18_from_R34")


def students_of(teacher: str) -> list[str]:
    return [f"{teacher.removesuffix('_R34_FPN')}_{student}" for student in STUDENTS]


@pytest.mark.slow
def test_every_quickstart_config_learns(tmp_path, repository):
    """Detectors find cars and distillation losses decrease within 100 iterations."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "datasets")}

    def call(script: str, *args: str) -> None:
        command = [sys.executable, os.path.join(repository, script), *args]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]

    call("datasets/make_synthetic_kitti.py", "--train", "100", "--val", "20", "--workers", "2")
    names = [x for teacher in TEACHERS for x in (teacher, *students_of(teacher))]
    for name in (*names, "faster_rcnn_R18_from_two"):
        config = os.path.join(repository, "configs", "Quickstart", f"{name}.yaml")
        call("train_net.py", "--config-file", config, "--num-gpus", "0", "SOLVER.MAX_ITER", "100")
        log = (tmp_path / "output/quickstart" / name / "metrics.json").read_text()
        lines = [json.loads(line) for line in log.splitlines()]
        first, *_, last = (line for line in lines if "total_loss" in line)
        assert lines[-1]["bbox/AP50"] > 3
        if "from" in name:
            # The weight grows as the unweighted loss decreases.
            before, after = (
                x["loss_distill_pkd"] / x["aid/distillation_weight"] for x in (first, last)
            )
            assert after < before
            assert ("aid/weight_mean" in last) == ("none" not in name)
