"""Division of a run's messages between log.txt and the screen."""

import logging
import sys

__all__ = ["Screen", "log_to_file"]

# Beginnings of the messages of Detectron2 and fvcore that appear on the screen, by logger.
SHOWN = {
    "detectron2.engine.train_loop": ("",),
    "detectron2.engine.hooks": ("Running precise-BN", "Overall training", "Total training"),
    "detectron2.utils.events": ("",),
    "detectron2.evaluation.evaluator": ("Inference done", "Total inference time"),
    "detectron2.evaluation.coco_evaluation": ("Evaluation results", "Per-category"),
    "fvcore.common.checkpoint": ("Saving checkpoint",),
}


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


class Screen(logging.Filter):
    """Filter of a screen that drops most messages of Detectron2; log.txt has all of them.

    Warnings, the messages of this project and those of :data:`SHOWN` pass.
    """

    def __init__(self, results: bool = True):
        """
        Args:
            results: whether results of evaluations appear.
        """
        super().__init__()
        self._results = results

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO:
            return True
        package, _, module = record.name.partition(".")
        if module.startswith("evaluation") and not self._results:
            return False
        shown = SHOWN.get(record.name, ())
        return package == "aid" or str(record.msg).startswith(shown)
