"""Messages for log.txt alone, and the screen before training starts."""

import io
import logging
import sys

import pytest

from aid.utils.logs import QuietStart, log_to_file


def record(name: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "", (), None)


def test_detectron2_is_silent_until_training_or_evaluation_starts():
    quiet = QuietStart()
    assert not quiet.filter(record("detectron2.data.build"))
    assert not quiet.filter(record("fvcore.common.checkpoint"))
    assert quiet.filter(record("detectron2.data.build", logging.WARNING))
    assert quiet.filter(record("aid.engine.setup"))
    assert not quiet.filter(record("detectron2.engine.defaults"))
    assert quiet.filter(record("detectron2.engine.train_loop"))
    assert quiet.filter(record("fvcore.common.checkpoint"))
    quiet = QuietStart()
    assert quiet.filter(record("detectron2.evaluation.evaluator"))
    assert quiet.filter(record("detectron2.data.build"))


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
