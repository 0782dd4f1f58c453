"""Messages for log.txt alone, and those on the screen."""

import io
import logging
import sys

import pytest

from aid.utils.logs import Screen, log_to_file


def record(name: str, message: str = "", level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, message, (), None)


SHOWN = [
    ("aid.engine.setup", "Config file a.yaml"),
    ("aid.evaluation.kitti_evaluation", "KITTI's official metric"),
    ("detectron2.engine.train_loop", "Starting training from iteration 0"),
    ("detectron2.engine.hooks", "Total training time: 0:00:17 (0:00:01 on hooks)"),
    ("detectron2.utils.events", " eta: 0:00:01  iter: 19"),
    ("detectron2.evaluation.evaluator", "Inference done 11/100. ETA=0:01:00"),
    ("detectron2.evaluation.coco_evaluation", "Evaluation results for bbox: "),
    ("fvcore.common.checkpoint", "Saving checkpoint to a.pth"),
]
DROPPED = [
    ("detectron2.data.build", "Distribution of instances among all 3 categories"),
    ("detectron2.engine.defaults", "Evaluation results for a in csv format:"),
    ("detectron2.evaluation.testing", "copypaste: Task: bbox"),
    ("detectron2.evaluation.evaluator", "Total inference pure compute time: 0:00:00"),
    ("detectron2.evaluation.coco_evaluation", "Preparing results for COCO format ..."),
    ("fvcore.common.checkpoint", "[Checkpointer] Loading from a.pth ..."),
]


def test_screen_shows_what_matters():
    screen = Screen()
    assert [x for x in (*SHOWN, *DROPPED) if screen.filter(record(*x))] == SHOWN
    assert all(screen.filter(record(*x, logging.WARNING)) for x in DROPPED)


def test_screen_of_a_dry_run_has_no_results():
    screen = Screen(results=False)
    shown = [name for name, message in SHOWN if screen.filter(record(name, message))]
    assert [x for x in shown if "evaluation" in x] == [] and len(shown) == 5


def test_message_for_the_file_is_not_on_the_screen(monkeypatch):
    file, screen = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    handlers = [logging.StreamHandler(file), logging.StreamHandler(screen)]
    monkeypatch.setattr(logging.getLogger("aid"), "handlers", handlers)
    log_to_file(logging.INFO, "%d images", 3)
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    log_to_file(logging.ERROR, "It failed:", error=caught.value)
    assert file.getvalue().startswith("3 images\nIt failed:\nTraceback ")
    assert screen.getvalue() == ""
