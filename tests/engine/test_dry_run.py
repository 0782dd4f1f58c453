"""Option --dry-run: its report, and files that it leaves unchanged."""

import os
import re
from datetime import timedelta
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from detectron2.engine.launch import DEFAULT_TIMEOUT

from aid.config import load_config
from aid.engine import AIDTrainer, dry_run
from aid.engine.dry_run import stand_in_for_teachers
from aid.engine.estimate import Evaluation, Found, summarize
from aid.modeling.schedule import Schedule
from aid.modeling.teacher import load_teacher
from aid.utils.errors import AIDError
from aid_tools.train_arguments import argument_parser

REPOSITORY = Path(__file__).resolve().parents[2]


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


def lines_of(output: str) -> dict[str, str]:
    """Rows of the table by their first column."""
    rows = re.findall(r"^  (\S.{15}) +(.+)$", output[output.index("Dry run on") :], re.MULTILINE)
    return {key.strip(): value for key, value in rows}


def contents(folder) -> dict[str, tuple[int, bytes]]:
    files = [x for x in folder.rglob("*") if x.is_file()]
    return {str(x): (x.stat().st_mtime_ns, x.read_bytes()) for x in files}


def test_dry_run_tries_every_stage_and_leaves_no_files(arguments, toy_dataset, tmp_path, capsys):
    dry_run(arguments(opts=["TEACHER.EVAL_FIRST", True, "TEST.EVAL_PERIOD", 2]))
    rows = lines_of(capsys.readouterr().out)
    assert rows["starts at"] == "iteration 0 of 4"
    assert {"step 1", "step 2"} <= rows.keys() and "step 3" not in rows
    assert re.fullmatch(r"\S+ s, \d+ MiB resident at most", rows["step 2"])
    for role in ("teachers", "student"):
        assert f" on {toy_dataset}, 7 images of " in rows[f"test of {role}"]
    assert "MiB, written in " in rows["checkpoint"]
    estimate = r"test of teachers \S+ s, 4 iterations \S+ s, 2 tests \S+ s, 5 checkpoints \S+ s"
    assert re.fullmatch(estimate, rows["estimate"])
    assert not (tmp_path / "out").exists()
    assert rows["OUTPUT_DIR"] == f"{tmp_path / 'out'} is as it was"


def test_screen_of_a_dry_run_has_the_given_overrides_only(arguments, no_handlers, capsys):
    dry_run(arguments("SOLVER.MAX_ITER", "3", "OUTPUT_DIR", "elsewhere"))
    screen, _ = capsys.readouterr().out.split("Dry run on")
    assert "run.yaml with SOLVER.MAX_ITER 3 OUTPUT_DIR elsewhere\n" in screen
    assert "Starting training" in screen and len(screen.splitlines()) < 15
    assert "Average Precision" not in screen and "| AP " not in screen


@pytest.mark.parametrize("done", [2, 4])
def test_dry_run_with_resume_reports_the_start(done, arguments, run_config, tmp_path, capsys):
    trainer = AIDTrainer(run_config("out", opts=["SOLVER.MAX_ITER", done]))
    trainer.resume_or_load(resume=False)
    trainer.train()
    before = contents(tmp_path / "out")
    dry_run(arguments("--resume"))
    assert contents(tmp_path / "out") == before
    rows = lines_of(capsys.readouterr().out)
    checkpoint = tmp_path / "out" / "model_final.pth"
    assert rows["starts at"] == f"iteration {done} of 4, from {checkpoint}"
    is_finished = done == 4
    assert ("step 1" in rows) != is_finished
    assert ("iterations" in rows["estimate"]) != is_finished


def test_resume_without_a_checkpoint_starts_at_0(arguments, capsys):
    dry_run(arguments("--resume"))
    assert lines_of(capsys.readouterr().out)["starts at"] == "iteration 0 of 4"


def test_late_distillation_is_tried(arguments, monkeypatch, capsys):
    seen = []
    real = Schedule.__call__
    monkeypatch.setattr(Schedule, "__call__", lambda self, i: seen.append(i) or real(self, i))
    dry_run(arguments(opts=["DISTILLATION.SCHEDULE.START_ITER", 2]))
    assert set(seen) == {2, 3}
    assert "starts at         iteration 0 of 4" in capsys.readouterr().out


@pytest.mark.parametrize("more", [0, 1])
def test_random_weights_stand_in_for_untrained_teachers(
    more, arguments, tmp_path, monkeypatch, caplog, capsys
):
    """The teacher's training is the longest; the student's time is known before it."""
    monkeypatch.chdir(tmp_path)
    args = arguments(opts=["TEACHER.INHERIT", True, "TEACHER.EVAL_FIRST", True])
    config_file = load_config(args.config_file).TEACHER.CONFIG_FILE
    weights = os.path.join(load_config(config_file).OUTPUT_DIR, "model_final.pth")
    cache = str(tmp_path / "cache")
    opts = ["TEACHER.WEIGHTS", weights, "TEACHER.CACHE", cache]
    opts += ["TEACHER.MORE_WEIGHTS", str([weights] * more)]
    args.opts = [*opts, "TEACHER.MORE_CONFIG_FILES", str([config_file] * more)]
    dry_run(args)
    assert {"step 2", "test of teachers"} <= lines_of(capsys.readouterr().out).keys()
    lines = [x for x in caplog.messages if "stand in" in x]
    assert lines[0] == (
        f"TEACHER.WEIGHTS {weights} does not exist yet: random weights stand in for it"
    )
    assert len(lines) == 1 + more
    assert not os.path.exists(cache) and not (tmp_path / "out").exists()


def test_random_weights_fit_a_detector_whose_norms_have_none(tmp_path, monkeypatch, file_limit):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(f"{REPOSITORY}/configs/Quickstart/retinanet_R18_from_R34.yaml")
    with file_limit(1000), pytest.raises(AIDError, match=f"{tmp_path} cannot be written"):
        stand_in_for_teachers(cfg.clone(), str(tmp_path))
    stand_in_for_teachers(cfg, str(tmp_path))
    assert load_teacher(cfg.TEACHER.CONFIG_FILE, cfg.TEACHER.WEIGHTS).num_parameters > 1e7


def test_plain_detector_has_no_test_of_teachers(arguments, capsys):
    dry_run(arguments(opts=["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]))
    rows = lines_of(capsys.readouterr().out)
    assert {"step 2", "test"} <= rows.keys() and not any("test of" in x for x in rows)


def test_dry_run_in_two_processes_reports_once(arguments, in_processes, tmp_path, capfd):
    in_processes(2, dry_run, arguments(opts=["SOLVER.IMS_PER_BATCH", 4]))
    output = capfd.readouterr().out
    assert output.count("Dry run on 2 processes, cpu:") == 1
    assert ", 4 images of " in lines_of(output)["test of student"]  # of 7
    assert not (tmp_path / "out").exists()


def test_errors_of_a_run_are_raised_by_a_dry_run(arguments, run_config, tmp_path):
    with pytest.raises(AIDError, match="--dry-run tries a training: leave out --eval-only"):
        dry_run(arguments("--eval-only"))
    with pytest.raises(AIDError, match="--config-file is missing"):
        dry_run(argument_parser().parse_args(["--dry-run", "--config-file", ""]))
    (tmp_path / "file").write_text("")
    with pytest.raises(AIDError, match=f"OUTPUT_DIR .*/x cannot be written: {tmp_path}/file is no"):
        dry_run(arguments("OUTPUT_DIR", str(tmp_path / "file/x")))
    with pytest.raises(AIDError, match="TEACHER.WEIGHTS is empty"):
        dry_run(arguments("TEACHER.WEIGHTS", ""))
    with pytest.raises(AIDError, match="TEACHER.WEIGHTS gone.pth does not exist: train the"):
        dry_run(arguments("TEACHER.WEIGHTS", "gone.pth"))
    with pytest.raises(AIDError, match="training diverged at iteration 1: .*/out/metrics.json"):
        dry_run(arguments("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0"))


def test_estimate_counts_iterations_tests_and_checkpoints(run_config, tmp_path):
    opts = ["SOLVER.MAX_ITER", 1000, "TEST.EVAL_PERIOD", 250, "SOLVER.CHECKPOINT_PERIOD", 400]
    cfg = run_config("out", opts=opts)
    slow = [(9.0, 100.0), (3.0, 300.0)]
    measured = [
        Found(500, [(8.0, 50.0), (2.0, 200.0)], [], [Evaluation("a", 50, 0.5, 5.0)], 250.0),
        Found(500, slow, [], [Evaluation("a", 50, 0.1, 20.0)], 310.0, (0, 0.0, 0.0)),
    ]
    measured[0].checkpoint = (2**20, 10.0, 1.0)
    lines = lines_of(summarize(cfg, measured, str(tmp_path / "new/out"), "x.pth"))
    assert lines["starts at"] == "iteration 500 of 1000, from x.pth"
    assert lines["step 1"] == "9 s, 100 MiB resident at most"
    assert lines["step 2"] == "3 s, 300 MiB resident at most"
    assert lines["test of student"] == "30 s on a, 50 images of 0.5 s and 5 s besides"
    assert lines["memory"] == "310 MiB resident at most, tests included"
    # After iterations 750 and 1000; after 800 and 1000.
    assert lines["estimate"] == "500 iterations 25 min, 2 tests 1 min, 2 checkpoints 20 s"
    assert lines["in all"].startswith("26 min 20 s; started now it ends at 20")


def test_insufficient_disk_space_is_reported(run_config, tmp_path):
    measured = Found(0, [(1.0, 1.0)], checkpoint=(2**60, 1.0, 1.0))
    lines = lines_of(summarize(run_config("out"), [measured], str(tmp_path), ""))
    assert lines["checkpoint"].endswith("are free: TOO LITTLE")


def test_examples_of_the_help_are_valid_commands(repository):
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


def test_parser_has_the_options_of_detectron2():
    given = ["--config-file", "a.yaml"]
    default_args = vars(default_argument_parser().parse_args(given))
    args = vars(argument_parser().parse_args(given))
    assert default_args.keys() <= args.keys()
    changed = {key for key in default_args if default_args[key] != args[key]}
    assert changed == {"num_gpus", "dist_url"}
    assert timedelta(minutes=args["timeout"]) == DEFAULT_TIMEOUT
