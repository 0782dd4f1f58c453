"""tools/study.py as a process."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_closed_pipe_is_not_an_error():
    command = f"{sys.executable} tools/study.py studies/weighting.yaml --list | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
