"""tools/study.py as a process."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} tools/study.py studies/weighting.yaml --list | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
