"""Detections of frame after frame."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import Instances
from torch import nn

from .sources import Frame

__all__ = ["as_input", "predict"]


def as_input(image: np.ndarray, cfg: CfgNode) -> dict:
    """An image as the detector takes it in an evaluation.

    Args:
        image: (H, W, 3), uint8, in the channel order of INPUT.FORMAT.
        cfg: the detector's config.

    Returns:
        The standard input of a Detectron2 model.
    """
    sample = T.AugInput(image)
    T.AugmentationList(build_augmentation(cfg, is_train=False))(sample)
    pixels = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
    return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}


@torch.no_grad()
def predict(
    detector: nn.Module,
    cfg: CfgNode,
    frames: Iterable[Frame],
    batch_size: int = 1,
    score_threshold: float = 0.0,
) -> Iterator[tuple[Frame, Instances]]:
    """Run a detector on frames, of which no more than one batch is kept.

    Args:
        detector: in eval mode.
        cfg: its config.
        frames: of :func:`~aid_tools.prediction.sources.read_frames`.
        batch_size: frames that go through the detector at once. Images of several sizes are padded
            to the largest of their batch, which may change the last digits of what is found.
        score_threshold: detections below it are left out.

    Yields:
        Each frame with its detections, in pixels of the image, on the CPU.
    """
    frames = iter(frames)
    while batch := list(islice(frames, batch_size)):
        outputs = detector([as_input(frame.image, cfg) for frame in batch])
        for frame, output in zip(batch, outputs, strict=True):
            found = output["instances"].to("cpu")
            yield frame, found[found.scores >= score_threshold]
