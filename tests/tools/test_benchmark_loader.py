"""The loader's benchmark, as a user calls it."""

import json
import re

import pytest

from aid.config import load_config
from aid.utils.errors import AIDError
from aid_tools.benchmark.loader import measure_loader


@pytest.fixture
def config(tiny_config, toy_dataset):
    keys = ["DATASETS.TRAIN", (toy_dataset,), "SOLVER.IMS_PER_BATCH", 2]
    return tiny_config("faster_rcnn", keys)


def test_what_is_printed_and_written(config, load_script, tmp_path, capsys):
    tool = load_script("tools/benchmark_loader.py")
    path = tmp_path / "loader.json"
    tool.main([
        "--config-file", config, "--workers", "0", "1", "--batches", "3", "--json", str(path)
    ])  # fmt: skip
    found = json.loads(path.read_text())["images_per_second"]
    rows = re.findall(r"^ *([01])  +([0-9.]+)  +[0-9.]+$", capsys.readouterr().out, re.MULTILINE)
    assert [(n, float(rate)) for n, rate in rows] == [
        (n, pytest.approx(rate, abs=0.06)) for n, rate in found.items()
    ]
    assert set(found) == {"0", "1"}


def test_every_counted_batch_is_waited_for(config, monkeypatch):
    """The rate is that of the counted batches, whatever came before."""
    clock = iter([10.0, 14.0])
    monkeypatch.setattr("aid_tools.benchmark.loader.time.perf_counter", lambda: next(clock))
    assert measure_loader(load_config(config), [0], 6) == {0: 3.0}  # 12 images in 4 s


@pytest.mark.parametrize("workers, batches, what", [([0], 0, "--batches"), ([-1], 2, "--workers")])
def test_what_cannot_be_measured(config, workers, batches, what):
    with pytest.raises(AIDError, match=what):
        measure_loader(load_config(config), workers, batches)


def test_an_unknown_dataset(config, load_script, capsys):
    tool = load_script("tools/benchmark_loader.py")
    with pytest.raises(SystemExit):
        tool.main(["--config-file", config, "DATASETS.TRAIN", "('nowhere',)"])
    assert "'nowhere' is not registered" in capsys.readouterr().err
