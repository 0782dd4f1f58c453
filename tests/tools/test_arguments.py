"""Command lines of the tools: options and help."""

import argparse

import pytest

TOOLS = (
    "benchmark",
    "benchmark_loader",
    "convert_dataset",
    "crash_campaign",
    "evaluate_kitti",
    "export_model",
    "load_test",
    "model_zoo",
    "new_project",
    "predict",
    "report",
    "study",
    "visualize",
)
WIDTH = 100


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
