"""Command lines of the scripts: options, help and what they need."""

import argparse
import os
import subprocess
import sys

import pytest

from aid.data.builtin import datasets_root
from aid.data.coco_traffic import SPLITS
from aid_tools.arguments import dataset_folder
from aid_tools.command import _how, command
from aid_tools.export import FILES
from aid_tools.own_data import DETECTORS, FORMATS

TOOLS = (
    "benchmark",
    "benchmark_loader",
    "convert_dataset",
    "crash_campaign",
    "evaluate_kitti",
    "export_model",
    "gpu_check",
    "lazyconfig_train_net",
    "load_test",
    "model_zoo",
    "new_project",
    "predict",
    "report",
    "study",
    "visualize",
)
WIDTH = 100
ENTRIES = (
    "train_net.py",
    *(f"tools/{name}.py" for name in (*TOOLS, "install_detectron2")),
    *(
        f"datasets/{x}.py"
        for x in ("make_synthetic_kitti", "prepare_coco_traffic", "prepare_kitti")
    ),
)


@pytest.fixture(params=TOOLS)
def parser(request, load_script, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    return load_script(f"tools/{request.param}.py").build_parser()


def test_every_option_has_a_help_text(parser):
    actions = [x for x in parser._actions if not isinstance(x, argparse._HelpAction)]
    assert [x.dest for x in actions if not x.help] == []


def test_help_keeps_the_lines_of_the_examples(parser):
    """An unescaped backslash at the end of a line would join two lines."""
    lines = parser.format_help().splitlines()
    assert max(map(len, lines)) <= WIDTH
    commands = [x for x in lines if x.startswith("    python tools/")]
    assert commands and not any("  " in x.strip() for x in commands)


def test_common_options_are_parsed(load_script):
    benchmark = load_script("tools/benchmark.py").build_parser()
    args = benchmark.parse_args(["--config-file", "a.yaml", "AID.ALPHA", "0.5"])
    assert (args.config_file, args.device, args.register) == ("a.yaml", "cpu", None)
    assert args.opts == ["AID.ALPHA", "0.5"]
    visualize = load_script("tools/visualize.py").build_parser()
    args = visualize.parse_args(["--config-file", "a.yaml", "--output", "out", "--num-gpus", "0"])
    assert (args.num_gpus, args.output, args.weights, args.opts) == (0, "out", "", [])
    predict = load_script("tools/predict.py").build_parser()
    options = ["a.png", "--config-file", "a.yaml", "--output", "out", "--opts", "SEED", "1"]
    args = predict.parse_args(options)
    assert (args.inputs, args.opts, args.weights) == (["a.png"], ["SEED", "1"], None)
    assert load_script("tools/load_test.py").build_parser().get_default("num_gpus") == 0


@pytest.mark.parametrize(
    "value, is_score", [("0", True), ("1", True), ("40", False), ("nan", False)]
)
@pytest.mark.parametrize(
    "args",
    [
        ["predict", "a.png", "--config-file", "a.yaml", "--output", "out", "--score-threshold"],
        ["report", "run", "--output", "out", "--threshold"],
    ],
)
def test_scores_are_from_0_to_1(args, value, is_score, load_script, capsys):
    name, *options = args
    parser = load_script(f"tools/{name}.py").build_parser()
    if is_score:
        parser.parse_args([*options, value])
        return
    with pytest.raises(SystemExit):
        parser.parse_args([*options, value])
    assert f"{options[-1]}: {value} is no score from 0 to 1" in capsys.readouterr().err


def test_every_script_is_an_entry(repository):
    found = {"train_net.py"}
    for folder in ("tools", "datasets"):
        names = os.listdir(os.path.join(repository, folder))
        found |= {f"{folder}/{name}" for name in names if name.endswith(".py")}
    found.remove("tools/run_onnx.py")  # an example that is independent of the project
    assert found == set(ENTRIES)


def run_without_packages(script: str, *args: str) -> subprocess.CompletedProcess:
    """Run a script where only the standard library can be imported."""
    command = [sys.executable, "-I", "-S", script, *args]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("script", ENTRIES)
def test_help_needs_no_package(script, repository):
    done = run_without_packages(os.path.join(repository, script), "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"usage: {os.path.basename(script)} ")


@pytest.fixture
def refused(load_script, monkeypatch, capsys):
    """A function (script, arguments) -> its error line, without importing aid."""

    def call(script: str, *args: str) -> str:
        module = load_script(script)
        with pytest.raises(SystemExit) as ended:
            (module.start if hasattr(module, "start") else module.main)(list(args))
        line = capsys.readouterr().err
        assert ended.value.code == 2 and line.count("\n") == 1
        return line

    monkeypatch.setattr("aid_tools.command._import_aid", lambda: pytest.fail("imports aid"))
    return call


@pytest.mark.parametrize(
    "script, args, message",
    [
        ("train_net.py", ["--config-file", "gone.yaml"], "--config-file gone.yaml does not exist"),
        (
            "train_net.py",
            ["--config-file", "CONFIG.yml"],
            "does not exist (did you mean CONFIG.yaml?",
        ),
        ("train_net.py", ["--config-file", "a\x1b"], r"--config-file a\x1b does not exist"),
        (
            "train_net.py",
            ["--register", "CONFIG.yaml", "--register", "gone.py", "--config-file", "CONFIG.yaml"],
            "--register gone.py does not exist",
        ),
        (
            "train_net.py",
            ["--config-file", "CONFIG.yaml", "SEED", "1", "INPUT.MIN_SIZE_TRAIN", "(1,", "2)"],
            "options: SEED 1 INPUT.MIN_SIZE_TRAIN '(1,' '2)' is an odd number of words, where KEY",
        ),
        (
            "train_net.py",
            ["--config-file", "CONFIG.yaml", "SEED", "1", "--resume"],
            "--resume stands behind KEY VALUE: put options before",
        ),
        (
            "tools/lazyconfig_train_net.py",
            ["--config-file", "CONFIG.py", "train.max_iter=3", "--resume"],
            "CONFIG.py does not exist (did you mean CONFIG.yaml?",
        ),
        (
            "tools/predict.py",
            ["a.png", "--output", "x", "--config-file", "CONFIG.yaml", "--weights", "gone.pth"],
            "--weights gone.pth does not exist",
        ),
        (
            "tools/export_model.py",
            ["--output", "x", "--config-file", "COCO-Detection/faster_rcnn_R_50_FPN_3y.yaml"],
            "(did you mean COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml?)",
        ),
    ],
)
def test_missing_files_and_odd_overrides_are_found_before_torch_is_imported(
    script, args, message, refused, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CONFIG.yaml").write_text("")
    assert message in refused(script, *args)


def test_names_in_the_model_zoo_and_overrides_of_a_lazyconfig_pass(refused, tmp_path):
    config = tmp_path / "config.py"
    config.write_text("")
    for script, args in (
        ("tools/lazyconfig_train_net.py", ["--config-file", str(config), "train.max_iter=3"]),
        (
            "tools/export_model.py",
            ["--config-file", "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", "--output", "x"],
        ),
        (
            "tools/predict.py",
            ["a", "--config-file", str(tmp_path), "--output", "x", "--weights", "http://a/b.pth"],
        ),
    ):
        with pytest.raises(pytest.fail.Exception, match="imports aid"):
            refused(script, *args)


def test_missing_config_is_found_without_torch(repository):
    program = (
        "import runpy, sys\nsys.argv = ['train_net.py', '--config-file', 'gone.yaml']\n"
        "try:\n    runpy.run_path('train_net.py', run_name='__main__')\n"
        "finally:\n    assert not {'torch', 'detectron2', 'aid'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: --config-file gone.yaml does not exist: check the path\n"


@pytest.mark.parametrize(
    "script, args",
    [
        ("train_net.py", ["--config-file", "a.yaml"]),
        ("tools/report.py", ["a", "--output", "b"]),
        ("datasets/make_synthetic_kitti.py", []),
    ],
)
def test_missing_package_is_a_one_line_error(script, args, repository, monkeypatch):
    monkeypatch.chdir(repository)
    done = run_without_packages(os.path.join(repository, script), *args)
    assert done.returncode == 1 and done.stdout == ""
    how = "run `make install`, then `. .venv/bin/activate`"
    assert done.stderr == f"error: torch is not installed for {sys.executable}: {how}\n"


def test_installation_is_in_the_repository(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"run `make install` in {repository}, then `. {repository}/.venv/bin/activate`"
    assert _how() == expected


def test_choices_and_defaults_are_those_of_the_modules(load_script, monkeypatch):
    """The parsers repeat them, since the modules import torch."""

    def choices(script: str, option: str) -> tuple[str, ...]:
        parser = load_script(f"tools/{script}.py").build_parser()
        return tuple(next(x for x in parser._actions if x.dest == option).choices)

    assert choices("export_model", "format") == tuple(FILES)
    assert choices("convert_dataset", "format") == tuple(FORMATS)
    assert choices("new_project", "detector") == tuple(DETECTORS)
    assert load_script("datasets/prepare_coco_traffic.py").SPLITS == SPLITS
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert dataset_folder("kitti") == os.path.join(datasets_root(), "kitti")


def test_older_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match="^error: Python 3.11 or later is needed, "):
        command(argparse.ArgumentParser)(lambda args: None)([])


def test_spawned_process_imports_aid_before_it_unpickles(monkeypatch):
    """Detectron2, imported on its own, prints deprecation warnings."""

    def main(args):
        pass

    main.__module__ = "__mp_main__"
    monkeypatch.setitem(sys.modules, "aid", None)
    with pytest.raises(ImportError):
        command(argparse.ArgumentParser)(main)


def test_broken_detectron2_is_a_one_line_error(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aid", None)  # import aid raises an ImportError
    with pytest.raises(SystemExit) as exit:
        command(argparse.ArgumentParser)(lambda args: None)([])
    assert str(exit.value).startswith("error: import of aid halted")


@pytest.mark.parametrize("own, expected", [(None, "5000"), ("7", "7")])
def test_threads_spin_briefly_unless_the_user_says_otherwise(own, expected, monkeypatch):
    """The variable is read when torch is imported, before which it must be set."""
    monkeypatch.setenv("GOMP_SPINCOUNT", own or "")
    if own is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    found = []
    monkeypatch.setattr(
        "aid_tools.command._import_aid", lambda: found.append(os.environ["GOMP_SPINCOUNT"])
    )
    command(argparse.ArgumentParser)(lambda args: None)([])
    assert found == [expected]
