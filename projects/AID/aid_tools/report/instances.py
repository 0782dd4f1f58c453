"""How a teacher judges the labelled instances of a dataset, and what is known about them."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from torch import Tensor, nn

from aid.modeling.families import PerInstanceLosses, per_instance_losses
from aid.modeling.teacher import build_teacher
from aid.modeling.weighting import TeacherStats, build_weighting
from aid.utils.errors import AIDError

from ..visualization.sample import load_sample

__all__ = [
    "DOUBTS",
    "ImageStats",
    "group_of",
    "groups_of",
    "image_stats",
    "read_records",
]

# What speaks against a label, in the order in which it is looked for, and how it is said.
DOUBTS = {
    "wrong class": "its label was given the wrong class",
    "jittered box": "its box was jittered",
    "mostly hidden": "most of it is hidden",
    "tiny": "it is tiny at the net's input",
}
# Mostly hidden: this share of the silhouette is visible, or KITTI says "largely occluded".
HIDDEN_VISIBLE, HIDDEN_OCCLUDED = 0.45, 2
# Root of the box's area, in pixels of the network's input.
TINY_SIDE = 16.0


@dataclass(frozen=True)
class ImageStats:
    """An image with the teacher's opinion of its G instances.

    Attributes:
        image: (H, W, 3), RGB, uint8, at test size.
        boxes: (G, 4), XYXY in its pixels.
        annotations: the G annotations, as the dataset has them.
        losses: (G,), the teacher's loss D.
        weights: (G,), of imitation.
    """

    image: np.ndarray
    boxes: Tensor
    annotations: list[dict]
    losses: Tensor
    weights: Tensor


def image_stats(
    cfg: CfgNode,
    records: Iterable[dict],
    memory: dict[str, Tensor] | None = None,
    student: nn.Module | None = None,
) -> Iterator[ImageStats]:
    """Losses and weights by the teacher of a distilled student, image by image.

    Args:
        cfg: the student's config; its weighting must need the teacher's losses.
        records: of a dataset.
        memory: state of the weighting at the end of training, if it has one.
        student: the detector in eval mode, for a rule that asks for the student's own losses.

    Raises:
        AIDError: the teacher cannot be built.
    """
    teacher, weighting = build_teacher(cfg), build_weighting(cfg).eval()
    weighting.load_state_dict(memory or weighting.state_dict())
    divisibility = max(1, teacher.detector.backbone.size_divisibility)
    for record in records:
        sample, annotations = load_sample(cfg, record)
        padded = tuple(
            -(-side // divisibility) * divisibility for side in sample["image"].shape[1:]
        )
        view = teacher.view([sample], padded, cfg.INPUT.FORMAT)
        targets = sample["instances"].to(teacher.detector.device)
        losses = teacher.per_instance_losses(view, [targets])
        stats = TeacherStats(losses, targets.gt_classes)
        if weighting.requires_quality:
            stats.quality = teacher.quality(view, [targets])
        if weighting.requires_student:
            stats.student = _own_losses(student, sample)
        weights = weighting(stats, [targets.gt_boxes.tensor], {})
        yield ImageStats(
            convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT),
            sample["instances"].gt_boxes.tensor,
            annotations,
            weights.loss.cpu(),
            weights.instance.cpu(),
        )


@torch.no_grad()
def _own_losses(student: nn.Module, sample: dict) -> PerInstanceLosses:
    images = student.preprocess_image([sample])
    targets = [sample["instances"].to(student.device)]
    return per_instance_losses(student, images, student.backbone(images.tensor), targets)


def read_records(dataset: str) -> dict | None:
    """What a rendered dataset's side file knows, {image name: entry}; None where there is none.

    Raises:
        AIDError: the file is there but is no side file of the renderer.
    """
    root = MetadataCatalog.get(dataset).get("kitti_root", None)
    path = os.path.join(root or "", "training", "scenes.json")
    if root is None or not os.path.isfile(path):
        return None
    try:
        with open(path) as f:
            return json.load(f)["scenes"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise AIDError(f"{path} is no side file of datasets/make_synthetic_kitti.py") from error


def groups_of(classes: list[str]) -> list[str]:
    """All groups, in the order of the figure: classes, of which nothing is known to be wrong, then
    what is."""
    return [*classes, *DOUBTS]


def group_of(annotation: dict, side: float, known: dict | None, classes: list[str]) -> str:
    """The group that an instance belongs to: the first of DOUBTS that fits, else its class.

    Args:
        annotation: of the dataset.
        side: root of the box's area, in pixels of the network's input.
        known: what the side file says of this label, if there is one.
        classes: names, by category id.
    """
    spoiled = known["spoiled"] if known is not None else None
    if known is not None:
        hidden = known["visible"] < HIDDEN_VISIBLE
    else:
        hidden = annotation.get("occluded", 0) == HIDDEN_OCCLUDED
    doubts = (spoiled == "class", spoiled == "jitter", hidden, side < TINY_SIDE)
    found = (doubt for doubt, holds in zip(DOUBTS, doubts, strict=True) if holds)
    return next(found, classes[annotation["category_id"]])
