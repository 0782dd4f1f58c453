"""Inference over a stream of frames."""

from collections.abc import Iterable, Iterator
from itertools import islice

from detectron2.structures import Instances

from aid.inference import Predictor

from .sources import Frame

__all__ = ["predict"]


def predict(
    predictor: Predictor,
    frames: Iterable[Frame],
    batch_size: int = 1,
    score_threshold: float = 0.0,
) -> Iterator[tuple[Frame, Instances]]:
    """Run a detector on frames, holding one batch in memory at a time.

    Args:
        predictor: the detector.
        frames: frames, see :func:`~aid_tools.prediction.sources.read_frames`.
        batch_size: number of frames per forward pass, see :meth:`Predictor.predict`.
        score_threshold: minimum score of the returned detections.

    Yields:
        Each frame with its detections, in pixels of the image, on the CPU.
    """
    frames = iter(frames)
    while batch := list(islice(frames, batch_size)):
        results = predictor.predict([frame.image for frame in batch])
        for frame, detections in zip(batch, results, strict=True):
            yield frame, detections[detections.scores >= score_threshold]
