"""Calls of tools/benchmark_loader.py and its measurement."""

import json
import re

import pytest

from aid.config import load_config
from aid.data.build import build_train_loader
from aid.utils.errors import AIDError
from aid_tools.benchmark.loader import measure_loader


@pytest.fixture
def config(tiny_config, toy_dataset):
    keys = ["DATASETS.TRAIN", (toy_dataset,), "SOLVER.IMS_PER_BATCH", 2]
    return tiny_config("faster_rcnn", keys)


def test_printed_and_written_rates_are_equal(config, load_script, tmp_path, capsys):
    tool = load_script("tools/benchmark_loader.py")
    path = tmp_path / "loader.json"
    tool.main([
        "--config-file", config, "--workers", "0", "1", "--batches", "3", "--json", str(path)
    ])  # fmt: skip
    actual = json.loads(path.read_text())["images_per_second"]
    rows = re.findall(r"^ *([01])  +([0-9.]+)  +[0-9.]+$", capsys.readouterr().out, re.MULTILINE)
    assert [(n, float(rate)) for n, rate in rows] == [
        (n, pytest.approx(rate, abs=0.06)) for n, rate in actual.items()
    ]
    assert set(actual) == {"0", "1"}


def test_rate_is_that_of_the_counted_batches(config, monkeypatch):
    """The rate excludes the batches before the counted ones."""
    clock = iter([10.0, 14.0])
    monkeypatch.setattr("aid_tools.benchmark.loader.time.perf_counter", lambda: next(clock))
    assert measure_loader(load_config(config), [0], 6) == {0: 3.0}  # 12 images in 4 s


def test_micro_batches_are_counted_by_their_images(config, monkeypatch):
    """The clock advances by one second with each image that is loaded."""
    images = []

    class Loader:
        prefetch_factor = None

        def __init__(self, cfg):
            self.batches = build_train_loader(cfg)

        def __iter__(self):
            for batch in self.batches:
                images.extend(batch)
                yield batch

    monkeypatch.setattr("aid_tools.benchmark.loader.build_train_loader", Loader)
    monkeypatch.setattr("aid_tools.benchmark.loader.time.perf_counter", lambda: len(images))
    cfg = load_config(config, ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 2])
    assert measure_loader(cfg, [0], 3) == {0: 1.0}


@pytest.mark.parametrize(
    "workers, batches, option", [([0], 0, "--batches"), ([-1], 2, "--workers")]
)
def test_invalid_numbers_are_refused(config, workers, batches, option):
    with pytest.raises(AIDError, match=option):
        measure_loader(load_config(config), workers, batches)


def test_unknown_dataset_is_refused(config, load_script, capsys):
    tool = load_script("tools/benchmark_loader.py")
    with pytest.raises(SystemExit):
        tool.main(["--config-file", config, "DATASETS.TRAIN", "('nowhere',)"])
    assert "'nowhere' is not registered" in capsys.readouterr().err
