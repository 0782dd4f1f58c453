"""tools/crash_campaign.py, on real training runs."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def campaign(repository, tmp_path):
    """A function (options) -> (finished process, its json output or None)."""

    def call(*options: str):
        script = os.path.join(repository, "tools/crash_campaign.py")
        command = [sys.executable, script, "--output", ".", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        written = tmp_path / "crash_campaign.json"
        return done, json.loads(written.read_text()) if written.exists() else None

    return call


@pytest.mark.slow
def test_killed_runs_equal_an_uninterrupted_run(campaign):
    done, result = campaign("--kills", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert result["kills"] == 2 and result["workers"] == [0, 2] and result["bit_equal"]
    assert result["unreadable_checkpoints"] == result["lost_checkpoints"] == 0
    # 5 periods and the end, twice.
    assert result["compared_checkpoints"] == 12 and result["failure"] is None
    assert done.stdout.startswith("2 kills, ")


@pytest.mark.slow
def test_violated_invariant_is_a_one_line_error_with_status_1(
    campaign, repository, tmp_path, monkeypatch
):
    """Runs without seeded iterations have other weights after they were resumed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.argv and sys.argv[0].endswith('train_net.py'):\n"
        "    import aid.engine.hooks\n"
        "    aid.engine.hooks.SeedStep.before_step = lambda self: None\n"
    )
    path = [str(tmp_path), os.path.join(repository, "projects/AID")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    done, result = campaign("--kills", "2", "--workers", "0")
    assert done.returncode == 1 and not result["bit_equal"]
    assert done.stderr.splitlines()[-1] == f"error: {result['failure']}"
    assert "differs from" in result["failure"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--kills", "1"], "--kills is 1: give at least one for each of workers (0, 2)"),
        (["--output", "/proc/campaign"], "--output /proc/campaign cannot be written: "),
    ],
)
def test_invalid_options_are_one_line_errors(options, message, load_script, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        load_script("tools/crash_campaign.py").main(["--output", str(tmp_path), *options])
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    assert f"error: {message}" in capsys.readouterr().err
