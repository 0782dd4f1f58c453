"""Inference over a stream of frames."""

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
    """Prepare an image for the detector as evaluation does.

    Args:
        image: (H, W, 3), uint8, in the channel order of INPUT.FORMAT.
        cfg: the detector's config.

    Returns:
        Standard input of a Detectron2 model.
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
    """Run a detector on frames, holding one batch in memory at a time.

    Args:
        detector: detector in eval mode.
        cfg: the detector's config.
        frames: frames, see :func:`~aid_tools.prediction.sources.read_frames`.
        batch_size: number of frames per forward pass. Images of different sizes are padded to the
            largest of the batch, which may change the last digits of the detections.
        score_threshold: minimum score of the returned detections.

    Yields:
        Each frame with its detections, in pixels of the image, on the CPU.
    """
    frames = iter(frames)
    while batch := list(islice(frames, batch_size)):
        outputs = detector([as_input(frame.image, cfg) for frame in batch])
        for frame, output in zip(batch, outputs, strict=True):
            detections = output["instances"].to("cpu")
            yield frame, detections[detections.scores >= score_threshold]
