"""Writers: figures of imitation in the lines, one line in a minute at least; valid JSON."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter

from aid.engine import AIDTrainer
from aid.engine.writers import IterationPrinter, PunctualWriter, own_writers
from aid_tools.report.runs import read_metrics


@pytest.fixture
def lines(caplog, monkeypatch):
    """The lines that are written."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO, "detectron2.utils.events")
    return lambda: [x.getMessage() for x in caplog.records if x.name == "detectron2.utils.events"]


def test_line_ends_with_the_last_figures_of_imitation(lines):
    with EventStorage() as storage:
        for value in (0.25, 0.123456):
            storage.put_scalars(total_loss=1.0, lr=0.1)
            storage.put_scalars(
                smoothing_hint=False,
                **{"aid/weight_mean": value, "aid/map_mean": 1.0, "aid/teacher_1/weight_mean": 0.5},
            )
            storage.step()
        IterationPrinter(9).write()
    (line,) = lines()
    assert "total_loss: 1" in line and "map_mean" not in line
    assert line.split("lr: ")[1].split("  ")[-2:] == [
        "aid/weight_mean: 0.123",
        "aid/teacher_1/weight_mean: 0.5",
    ]


def test_line_of_a_plain_detector_is_detectron2s(lines):
    with EventStorage() as storage:
        storage.put_scalars(total_loss=1.0, lr=0.1)
        for printer in (IterationPrinter(9), CommonMetricPrinter(9)):
            printer.write()
    own, expected = lines()
    assert own == expected.rstrip()


def test_slow_iterations_have_a_line_every_minute_and_none_twice(lines, monkeypatch):
    now = 0.0
    monkeypatch.setattr("aid.engine.writers.time.perf_counter", lambda: now)
    others = []
    other = IterationPrinter(9)
    monkeypatch.setattr(other, "write", lambda: others.append(storage.iter))
    monkeypatch.setattr(other, "write_if_late", lambda: None)
    writer = PunctualWriter(PeriodicWriter([IterationPrinter(9), other], period=4))
    with EventStorage() as storage:
        for i in range(9):
            storage.put_scalars(total_loss=1.0, lr=0.1)
            writer.trainer = SimpleNamespace(iter=i, max_iter=9)
            now += 25
            writer.after_step()
            storage.step()
    written = [int(line.split("iter: ")[1].split()[0]) for line in lines()]
    # 75 s after the first iteration, which is timed elsewhere, and after lines of the period.
    assert written == [3, 6, 7, 8] and others == [3, 7, 8]


def test_metrics_have_null_for_nan(tmp_path):
    path = tmp_path / "metrics.json"
    with EventStorage(7) as storage:
        (writer,) = own_writers([JSONWriter(str(path))], max_iter=9)
        storage.put_scalars(**{"bbox/AP-Car": float("nan"), "lr": 0.1})
        writer.write()
        writer.close()
    line = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert line == {"bbox/AP-Car": None, "iteration": 7, "lr": 0.1}
    assert math.isnan(read_metrics(str(path), 9)[0]["bbox/AP-Car"])


def test_trainer_keeps_the_order_of_detectron2s_writers(run_config):
    """The printer adds eta_seconds, which the file that is written next contains."""
    trainer = AIDTrainer(run_config("run"))
    (hook,) = (x for x in trainer._hooks if isinstance(x, PeriodicWriter))
    assert isinstance(hook, PunctualWriter)
    assert [type(x).__name__ for x in hook._writers] == [
        "IterationPrinter",
        "_MetricsWriter",
        "GroupingTensorboardWriter",
    ]
