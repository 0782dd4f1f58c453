"""Work of tools/predict.py: detections on files, and their output."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice

from detectron2.structures import Instances
from tqdm import tqdm

from aid import Predictor
from aid.data.images import longest_side
from aid.utils.text import one_line

from .sources import Frame, Source, count_frames, read_frames
from .writers import COCOWriter, KITTIWriter, PictureWriter

__all__ = ["predict", "predict_files"]


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


def predict_files(
    args: Namespace, predictor: Predictor, sources: list[Source]
) -> tuple[int, int, int]:
    """Run a detector on images and videos, and write its detections; nothing if none can be read.

    Args:
        args: of tools/predict.py.
        predictor: the detector.
        sources: of :func:`~aid_tools.prediction.find_sources`.

    Returns:
        Number of frames, of their detections, and of frames that were skipped since they cannot be
        read.
    """
    num_frames, num_detections, skipped = 0, 0, []
    names, ids = predictor.class_names, predictor.class_ids

    def skip(line: str) -> None:
        skipped.append(line)
        tqdm.write(f"skipped: {one_line(line)}", file=sys.stderr)

    frames = read_frames(sources, skip, longest_side(predictor.cfg, is_train=False))
    first = next(frames, None)
    if first is None:
        return 0, 0, len(skipped)
    with ExitStack() as stack:
        writers = []
        if "kitti" in args.format:
            writers.append(KITTIWriter(os.path.join(args.output, "kitti"), names))
        if "coco" in args.format:
            writers.append(COCOWriter(os.path.join(args.output, "detections.json"), names, ids))
        if not args.no_pictures:
            folder = os.path.join(args.output, "pictures")
            writers.append(PictureWriter(folder, names))
        for writer in writers:
            stack.enter_context(writer)
        bar = stack.enter_context(tqdm(total=count_frames(sources), unit="image"))
        results = predict(predictor, chain([first], frames), args.batch_size, args.score_threshold)
        for frame, detections in results:
            for writer in writers:
                writer.write(frame, detections)
            num_frames += 1
            num_detections += len(detections)
            bar.update()
    return num_frames, num_detections, len(skipped)
