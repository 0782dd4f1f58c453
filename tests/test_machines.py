"""train_net.py on two machines, simulated on one, and under torchrun."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch

# Registers the data; once there is a checkpoint, process 1 of a run with LETHAL set kills itself.
REGISTER = """
import os, signal, threading, time
from detectron2.utils import comm
from aid.data.kitti import register_kitti

register_kitti("five", {root!r}, "train", "")

def die():
    while not os.path.exists("out/last_checkpoint"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if "LETHAL" in os.environ and comm.get_rank() == 1:
    threading.Thread(target=die, daemon=True).start()
"""


@pytest.fixture
def start(tmp_path, kitti, tiny_config, repository):
    """A function (Python options, arguments, environment) -> process of train_net.py."""
    car = "Car 0 0 0 10 10 60 50 1 1 1 0 0 9 0"
    root = kitti({f"{i:06}": [car] if i else [] for i in range(5)})
    (tmp_path / "register.py").write_text(REGISTER.format(root=root))
    opts = ["DATASETS.TRAIN", ("five",), "DATASETS.TEST", ("five",), "OUTPUT_DIR", "out"]
    opts += ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False]
    opts += ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.MAX_ITER", 100000]
    opts += ["SOLVER.CHECKPOINT_PERIOD", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    config = tiny_config("faster_rcnn", opts)

    started = []

    def call(python, *args, **environment) -> subprocess.Popen:
        script = [os.path.join(repository, "train_net.py"), "--config-file", config]
        process = subprocess.Popen(
            [sys.executable, *python, *script, "--register", "register.py", *args],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_run_of_a_lost_machine_is_resumed_under_torchrun(start, tmp_path):
    machines = ["--num-processes", "1", "--num-machines", "2", "--timeout", "1"]
    machines += ["--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    runs = [start([], *machines, "--machine-rank", str(i), LETHAL="yes") for i in range(2)]
    output = [run.communicate(timeout=120) for run in runs]
    expected = [
        r"error: process 0 of 2 lost the others \(.*\): one of them ended.* --resume goes on .*",
        r"error: process 0 of this machine ended by SIGKILL.* --resume goes on .*",
    ]
    for run, (stdout, error), line in zip(runs, output, expected, strict=True):
        assert run.returncode == 2
        assert "Traceback" not in stdout + error
        assert re.fullmatch(line, error.splitlines()[-1])
        assert error.count("error: ") == 1

    last = int((tmp_path / "out/last_checkpoint").read_text()[6:13])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = start(torchrun, "--resume", "--num-gpus", "0", "SOLVER.MAX_ITER", str(last + 3))
    stdout, error = run.communicate(timeout=120)
    assert run.returncode == 0, error[-2000:]
    assert "processes: 2;" in stdout and f"Starting training from iteration {last + 1}" in stdout
    assert torch.load(tmp_path / "out/model_final.pth")["iteration"] == last + 2
    metrics = [json.loads(x) for x in (tmp_path / "out/metrics.json").read_text().splitlines()]
    assert metrics[-1]["kitti/objects-Car-easy"] == 4
