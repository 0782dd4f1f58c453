"""A run that is only tried: what it says, and what it leaves alone."""

import os
import re

import pytest
import torch
from detectron2.engine import default_argument_parser

from aid.engine import AIDTrainer, argument_parser, dry_run
from aid.engine.estimate import Evaluation, Found, summarize
from aid.modeling.schedule import Schedule
from aid.utils.errors import AIDError


@pytest.fixture
def arguments(run_config, tmp_path):
    """A function (options, config overrides) -> arguments of train_net.py for a student's run."""

    def make(*options: str, opts=()):
        path = tmp_path / "run.yaml"
        cfg = run_config("out", opts=opts)
        path.write_text(cfg.dump())
        if not os.listdir(cfg.OUTPUT_DIR):
            os.rmdir(cfg.OUTPUT_DIR)
        return argument_parser().parse_args(["--config-file", str(path), "--dry-run", *options])

    return make


def lines_of(said: str) -> dict[str, str]:
    """The table by its first column."""
    rows = re.findall(r"^  (\S.{15}) +(.+)$", said[said.index("Dry run on") :], re.MULTILINE)
    return {key.strip(): value for key, value in rows}


def contents(folder) -> dict[str, tuple[int, bytes]]:
    files = [x for x in folder.rglob("*") if x.is_file()]
    return {str(x): (x.stat().st_mtime_ns, x.read_bytes()) for x in files}


def test_everything_is_tried_and_nothing_is_left(arguments, toy_dataset, tmp_path, capsys):
    dry_run(arguments(opts=["TEACHER.EVAL_FIRST", True, "TEST.EVAL_PERIOD", 2]))
    found = lines_of(capsys.readouterr().out)
    assert found["starts at"] == "iteration 0 of 4"
    assert {"step 1", "step 2"} <= found.keys() and "step 3" not in found
    assert re.fullmatch(r"\S+ s, \d+ MiB resident at most", found["step 2"])
    for who in ("teachers", "student"):
        assert f" on {toy_dataset}, 7 images of " in found[f"test of {who}"]
    assert "MiB, written in " in found["checkpoint"]
    parts = r"test of teachers \S+ s, 4 iterations \S+ s, 2 tests \S+ s, 5 checkpoints \S+ s"
    assert re.fullmatch(parts, found["estimate"])
    assert not (tmp_path / "out").exists()
    assert found["OUTPUT_DIR"] == f"{tmp_path / 'out'} is as it was"


@pytest.mark.parametrize("done", [2, 4])
def test_a_resumed_run_says_where_it_would_go_on(done, arguments, run_config, tmp_path, capsys):
    trainer = AIDTrainer(run_config("out", opts=["SOLVER.MAX_ITER", done]))
    trainer.resume_or_load(resume=False)
    trainer.train()
    before = contents(tmp_path / "out")
    dry_run(arguments("--resume"))
    assert contents(tmp_path / "out") == before
    found = lines_of(capsys.readouterr().out)
    checkpoint = tmp_path / "out" / "model_final.pth"
    assert found["starts at"] == f"iteration {done} of 4, from {checkpoint}"
    is_finished = done == 4
    assert ("step 1" in found) != is_finished
    assert ("iterations" in found["estimate"]) != is_finished


@pytest.mark.parametrize("name", ["../outside.pth", "{folder}/outside.pth"])
def test_a_checkpoint_elsewhere_is_not_linked(name, arguments, tmp_path, monkeypatch):
    trial = tmp_path / "temporary"
    trial.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(trial))
    args = arguments("--resume")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/last_checkpoint").write_text(name.format(folder=trial))
    with pytest.raises(AIDError, match="out/last_checkpoint holds .*: write the name of a check"):
        dry_run(args)
    assert not list(trial.rglob("*"))


def test_to_resume_where_nothing_is_starts_afresh(arguments, capsys):
    dry_run(arguments("--resume"))
    assert lines_of(capsys.readouterr().out)["starts at"] == "iteration 0 of 4"


def test_imitation_that_starts_late_is_tried_too(arguments, monkeypatch, capsys):
    seen = []
    real = Schedule.__call__
    monkeypatch.setattr(Schedule, "__call__", lambda self, i: seen.append(i) or real(self, i))
    dry_run(arguments(opts=["DISTILLATION.SCHEDULE.START_ITER", 2]))
    assert set(seen) == {2, 3}
    assert "starts at         iteration 0 of 4" in capsys.readouterr().out


def test_without_a_teacher(arguments, capsys):
    dry_run(arguments(opts=["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]))
    found = lines_of(capsys.readouterr().out)
    assert "test of teachers" not in found and {"step 2", "test of student"} <= found.keys()


def test_in_two_processes(arguments, in_processes, tmp_path, capfd):
    in_processes(2, dry_run, arguments(opts=["SOLVER.IMS_PER_BATCH", 4]))
    said = capfd.readouterr().out
    assert said.count("Dry run on 2 processes, cpu:") == 1
    assert ", 4 images of " in lines_of(said)["test of student"]  # of 7
    assert not (tmp_path / "out").exists()


def test_what_stops_the_run_stops_the_trial(arguments, run_config, tmp_path):
    with pytest.raises(AIDError, match="--dry-run tries a training: leave out --eval-only"):
        dry_run(arguments("--eval-only"))
    with pytest.raises(AIDError, match="--config-file is missing"):
        dry_run(argument_parser().parse_args(["--dry-run"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(AIDError, match=f"OUTPUT_DIR .*/x cannot be written: {tmp_path}/file is no"):
        dry_run(arguments("OUTPUT_DIR", str(tmp_path / "file/x")))
    with pytest.raises(AIDError, match="TEACHER.WEIGHTS gone.pth does not exist"):
        dry_run(arguments("TEACHER.WEIGHTS", "gone.pth"))
    with pytest.raises(AIDError, match="training diverged at iteration 1: .*/out/metrics.json"):
        dry_run(arguments("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0"))


def test_the_folder_of_another_run_is_named(arguments, run_config, tmp_path):
    cfg = run_config("out")
    (tmp_path / "out/config.yaml").write_text(cfg.dump())
    torch.save({}, tmp_path / "out/model_0000000.pth")
    (tmp_path / "out/last_checkpoint").write_text("model_0000000.pth")
    other = ["--resume", "SOLVER.OPTIMIZER", "AdamW"]
    with pytest.raises(AIDError, match=f"the run in OUTPUT_DIR {tmp_path}/out has another model"):
        dry_run(arguments(*other))


def test_the_estimate_counts_what_the_run_will_do(run_config, tmp_path):
    opts = ["SOLVER.MAX_ITER", 1000, "TEST.EVAL_PERIOD", 250, "SOLVER.CHECKPOINT_PERIOD", 400]
    cfg = run_config("out", opts=opts)
    slow = [(9.0, 100.0), (3.0, 300.0)]
    found = [
        Found(500, [(8.0, 50.0), (2.0, 200.0)], [], [Evaluation("a", 50, 0.5, 5.0)], 250.0),
        Found(500, slow, [], [Evaluation("a", 50, 0.1, 20.0)], 310.0, (0, 0.0, 0.0)),
    ]
    found[0].checkpoint = (2**20, 10.0, 1.0)
    lines = lines_of(summarize(cfg, found, str(tmp_path / "new/out"), "x.pth"))
    assert lines["starts at"] == "iteration 500 of 1000, from x.pth"
    assert lines["step 1"] == "9 s, 100 MiB resident at most"
    assert lines["step 2"] == "3 s, 300 MiB resident at most"
    assert lines["test of student"] == "30 s on a, 50 images of 0.5 s and 5 s besides"
    assert lines["memory"] == "310 MiB resident at most, tests included"
    # After iterations 750 and 1000; after 800 and 1000.
    assert lines["estimate"] == "500 iterations 25 min, 2 tests 1 min, 2 checkpoints 20 s"
    assert lines["in all"].startswith("26 min 20 s; started now it ends at 20")


def test_a_disk_that_is_too_small(run_config, tmp_path):
    found = Found(0, [(1.0, 1.0)], checkpoint=(2**60, 1.0, 1.0))
    lines = lines_of(summarize(run_config("out"), [found], str(tmp_path), ""))
    assert lines["checkpoint"].endswith("are free: TOO LITTLE")


def test_the_examples_of_the_help_are_commands(repository):
    text = argument_parser().format_help().replace("\\\n", " ")
    commands = re.findall(
        rf"^ +(?:torchrun .*)?{argument_parser().prog} (--.+)$", text, re.MULTILINE
    )
    assert len(commands) == 6
    for command in commands:
        args = argument_parser().parse_args(command.split())
        assert args.config_file == "FILE" or os.path.isfile(
            os.path.join(repository, args.config_file)
        )
        assert len(args.opts) % 2 == 0 and not any(x.startswith("--") for x in args.opts)


def test_the_parser_has_detectron2s_options():
    theirs = vars(default_argument_parser().parse_args([]))
    ours = vars(argument_parser().parse_args([]))
    assert theirs.keys() <= ours.keys()
    changed = {key for key in theirs if theirs[key] != ours[key]}
    assert changed == {"num_gpus", "dist_url"}
