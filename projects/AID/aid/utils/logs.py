"""Division of a run's messages between log.txt and the screen."""

import logging
import sys

__all__ = ["QuietStart", "log_to_file"]


def log_to_file(level: int, message: str, *args: object, error: Exception | None = None) -> None:
    """Log a message to the log.txt of the run, if it is open, and not to the screen.

    Args:
        level: such as ``logging.INFO``.
        message, args: see :meth:`logging.Logger.log`.
        error: error whose traceback follows.
    """
    logger = logging.getLogger("aid")
    info = error and (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, level, __file__, 0, message, args, info)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is not sys.stdout:
            handler.handle(record)


class QuietStart(logging.Filter):
    """Filter of a screen that drops Detectron2's messages before training or evaluation starts.

    These are the printed model and the steps of building it and the data loaders. Warnings, and the
    messages of this project, pass.
    """

    def __init__(self):
        super().__init__()
        self._has_started = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith(("detectron2.engine.train_loop", "detectron2.evaluation")):
            self._has_started = True
        is_own = record.name.split(".")[0] not in ("detectron2", "fvcore")
        return self._has_started or is_own or record.levelno > logging.INFO
