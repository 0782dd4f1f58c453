"""Timing of kills in the crash campaign, on processes that only write files."""

import os
import sys
import textwrap

import pytest

from aid_tools.reliability.invariants import BrokenPromise
from aid_tools.reliability.victim import Victim


@pytest.fixture
def start(tmp_path):
    """A function (script of a training) -> the victim; its output folder is ``out``."""
    (tmp_path / "out").mkdir()

    def call(script: str) -> Victim:
        head = "import pathlib, time\nout = pathlib.Path('out')\n"
        (tmp_path / "train.py").write_text(head + textwrap.dedent(script))
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        command = ["sh", "-c", f"cd {tmp_path}; exec {sys.executable} train.py"]
        return Victim(command, environment, str(tmp_path / "out"))

    return call


STEPS = """
print("Starting training from iteration 12")
for i in range(2):
    (out / f"{i}.pth").touch()
    time.sleep(0.05)
(out / "2.pth.tmp").touch()
time.sleep(60)
"""


def test_process_is_killed_during_a_write(start):
    with start(STEPS) as victim:
        assert victim.start_iter == 12
        victim.wait_for_checkpoints(2)
        assert victim.seen == {"0.pth", "1.pth"}
        victim.wait_for_write()
        victim.kill()
        assert victim.is_writing()
    assert victim._process.returncode == -9


def test_wait_ends_after_enough_checkpoints(start):
    with start(STEPS) as victim:
        victim.wait(1000, at_most=2)
        assert len(victim.seen) == 2
        victim.wait(0.01, at_most=9)


def test_process_ends_with_its_context(start):
    with pytest.raises(KeyError), start(STEPS) as victim:
        raise KeyError
    assert victim._process.returncode == -9


@pytest.mark.parametrize("statement", ["", "print('Starting training from iteration 0')"])
def test_failed_process_is_reported_with_its_error(statement, start):
    script = f"{statement}\nraise SystemExit('error: no room')"
    with pytest.raises(BrokenPromise, match="exit code 1, see .*stdout.txt: error: no room"):
        start(script).wait_for_end()


def test_process_that_ends_too_early_is_reported(start):
    with (
        pytest.raises(BrokenPromise, match="ended by itself with exit code 0"),
        start("print('Starting training from iteration 0')") as victim,
    ):
        victim.wait_for_checkpoints(1)


def test_wait_for_the_end_of_a_process(start):
    start("print('Starting training from iteration 0')").wait_for_end()
