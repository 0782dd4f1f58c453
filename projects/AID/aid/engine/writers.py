"""Writers of a training: the line of an iteration, and metrics.json."""

import json
import logging
import time
from collections.abc import Iterable, MutableMapping
from typing import TextIO

from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, get_event_storage

from ..utils.files import json_text

__all__ = ["IterationPrinter", "PunctualWriter", "own_writers"]

# Ends of the log names of further figures in the line; losses are in Detectron2's own part.
FIGURES = ("weight_mean", "distillation_weight", "num_pseudo_labels", "pseudo_score_mean")
# Longest time between two lines, in seconds.
MAX_SECONDS = 60


class IterationPrinter(CommonMetricPrinter):
    """Detectron2's printer, whose lines end with the last figures of imitation.

    metrics.json has all figures.
    """

    def __init__(self, max_iter: int):
        """
        Args:
            max_iter: see :class:`CommonMetricPrinter`.
        """
        super().__init__(max_iter)
        self.logger = _WithFigures(self.logger)
        self._time: float | None = None

    def write(self) -> None:
        if get_event_storage().iter < self._max_iter:  # else no iteration has been run
            super().write()
        self._time = time.perf_counter()

    def write_if_late(self) -> None:
        """Write if the last line, or the first call, was MAX_SECONDS ago."""
        now = time.perf_counter()
        if self._time is None:
            self._time = now
        elif now - self._time >= MAX_SECONDS:
            self.write()


class _WithFigures(logging.LoggerAdapter):
    """Logger that appends figures to the lines of :class:`CommonMetricPrinter`."""

    def process(self, msg: str, kwargs: MutableMapping) -> tuple[str, MutableMapping]:
        latest = get_event_storage().latest()
        names = [x for x in latest if x.startswith("aid/") and x.endswith(FIGURES)]
        figures = [f"{name}: {latest[name][0]:.3g}" for name in names]
        return "  ".join([msg.rstrip(), *figures]), kwargs


class _MetricsWriter(JSONWriter):
    """Detectron2's writer of metrics.json, with null for NaN, which JSON does not have.

    NaN is COCO's AP of a class without objects.
    """

    def __init__(self, writer: JSONWriter):
        """
        Args:
            writer: whose file it takes over.
        """
        vars(self).update(vars(writer))
        self._file_handle = _ValidLines(self._file_handle)


class _ValidLines:
    """File of which each write is a line of JSON."""

    def __init__(self, file: TextIO):
        self._file = file
        self.flush, self.fileno, self.close = file.flush, file.fileno, file.close

    def write(self, line: str) -> None:
        self._file.write(json_text(json.loads(line)) + "\n")


def own_writers(writers: Iterable[EventWriter], max_iter: int) -> list[EventWriter]:
    """Replace Detectron2's printer and its writer of metrics.json by those of this module.

    Args:
        writers: writers of a training.
        max_iter: see :class:`IterationPrinter`.
    """
    own: list[EventWriter] = []
    for writer in writers:
        if isinstance(writer, CommonMetricPrinter):
            writer = IterationPrinter(max_iter)
        elif isinstance(writer, JSONWriter):
            writer = _MetricsWriter(writer)
        own.append(writer)
    return own


class PunctualWriter(PeriodicWriter):
    """Detectron2's PeriodicWriter, with lines in between if iterations are slow.

    Between two of its periods only the line of an iteration is written, at least every MAX_SECONDS.
    """

    def __init__(self, hook: PeriodicWriter):
        """
        Args:
            hook: whose writers and period it takes over.
        """
        vars(self).update(vars(hook))

    def after_step(self) -> None:
        super().after_step()
        for writer in self._writers:
            if isinstance(writer, IterationPrinter):
                writer.write_if_late()
