"""tools/gpu_check.py: its report on steps that pass, fail or are left out, and its commands."""

import json
import os

import pytest
import torch

from aid.utils.errors import AIDError
from aid_tools.reliability import check_gpu, gpu_check
from aid_tools.reliability.gpu_check import Step


@pytest.fixture
def check(tmp_path, monkeypatch, repository):
    """A function (steps, time limit) -> (whether the check passed, {step: its report})."""

    def run(*steps: Step, seconds: float = 60.0):
        monkeypatch.setattr(gpu_check, "_steps", lambda folder, device: iter(steps))
        passed = check_gpu(repository, str(tmp_path), "cpu", seconds)
        report = json.loads((tmp_path / "gpu_check.json").read_text())
        assert report["device"] == "cpu" and report["torch"] == torch.__version__
        return passed, {x["name"]: x for x in report["steps"]}

    return run


def test_failed_step_is_recorded_and_does_not_stop_the_others(check, capsys):
    passed, steps = check(
        Step("bad", ("-c", "print('why'); raise SystemExit(3)")),
        Step("good", ("-c", "print('not kept')")),
    )
    assert not passed
    outcomes = {name: (x["outcome"], x["lines"]) for name, x in steps.items()}
    assert outcomes == {
        "bad": ("failed", ["why", "exit code 3"]),
        "good": ("passed", []),
    }
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("failed") and first.endswith("s  bad: exit code 3")
    assert second.endswith("s  good")


def test_steps_end_at_the_time_limit(check, monkeypatch):
    start = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'input()'])"
    slow = Step("slow", ("-c", f"print('started'); {start}; time.sleep(60)"))
    passed, steps = check(slow, Step("late", ("-c", "")), seconds=0.5)
    assert not passed
    assert steps["slow"]["outcome"] == "failed" and steps["slow"]["seconds"] < 20
    assert steps["slow"]["lines"][-1] == "stopped after 0 s, at the end of --seconds"
    assert steps["late"]["outcome"] == "skipped"
    assert steps["late"]["lines"] == ["--seconds 0.5 are over"]


def test_figures_and_devices_reach_the_report(check, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "TemporaryDirectory", lambda **_: _Folder(tmp_path))
    code = "import json, os; json.dump(os.environ['AID_TEST_DEVICE'], open({!r}, 'w'))"
    code = code.format(str(tmp_path / gpu_check.FIGURES))
    passed, steps = check(Step("writes", ("-c", code)), Step("does not", ("-c", "")))
    assert passed
    assert steps["writes"]["figures"] == "cpu" and steps["does not"]["figures"] is None


class _Folder:
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return str(self.path)

    def __exit__(self, *exc_info):
        pass


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_files_of_all_steps_exist(device, repository, tmp_path):
    steps = list(gpu_check._steps(str(tmp_path), device))
    assert len({x.name for x in steps}) == len(steps)
    words = [word for step in steps for word in step.command]
    files = [x for x in words if x.endswith((".py", ".yaml"))]
    assert files and all(os.path.isfile(os.path.join(repository, x)) for x in files)
    assert ("--num-gpus" in words) == (device == "cpu")
    (mixed,) = (x.command for x in steps if x.name == "benchmark in mixed precision")
    assert mixed[-4:-1] == ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE")


def test_what_is_missing_is_said_in_one_line(monkeypatch, repository, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AIDError, match="finds no GPU here: --device cpu rehearses the check$"):
        check_gpu(repository, str(tmp_path), "cuda", 60.0)
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    with pytest.raises(AIDError, match="^pytest is not installed for .*: run `make install`$"):
        check_gpu(repository, str(tmp_path), "cpu", 60.0)
