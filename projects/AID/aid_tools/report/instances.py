"""Teacher's losses and weights on the labeled instances of a dataset, and label quality groups."""

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

# "tiny": square root of the box area, in pixels of the network's input.
TINY_SIDE = 16
# Groups of doubtful labels in the order of their tests, with their descriptions.
DOUBTS = {
    "wrong class": "the label has the wrong class",
    "jittered box": "the box is jittered",
    "mostly hidden": "the object is mostly hidden",
    "tiny": f"the object is smaller than {TINY_SIDE} pixels in the network's input",
}
# Suffix of the group of a class that is named like a doubt.
CLASS = " (class)"
# "mostly hidden": less than this share of the silhouette is visible, or KITTI's occlusion state is
# "largely occluded".
HIDDEN_VISIBLE, HIDDEN_OCCLUDED = 0.45, 2


@dataclass(frozen=True)
class ImageStats:
    """Image with the teacher's losses and the imitation weights of its G instances.

    Attributes:
        image: (H, W, 3), RGB, uint8, at test size.
        boxes: (G, 4), XYXY in pixels of ``image``.
        annotations: G annotations of the dataset.
        losses: (G,), the teacher's loss D.
        weights: (G,), imitation weights w.
        parts: {name: (G,)}, contribution of each component to D.
    """

    image: np.ndarray
    boxes: Tensor
    annotations: list[dict]
    losses: Tensor
    weights: Tensor
    parts: dict[str, Tensor]


def image_stats(
    cfg: CfgNode,
    records: Iterable[dict],
    memory: dict[str, Tensor] | None = None,
    student: nn.Module | None = None,
) -> Iterator[ImageStats]:
    """Compute the teacher's losses and the imitation weights, image by image.

    Args:
        cfg: the student's config; its weighting rule must need the teacher's losses.
        records: dataset records.
        memory: state of the weighting rule at the end of training, if it has a state.
        student: the detector in eval mode, for rules that need the student's own losses.

    Raises:
        AIDError: the teacher cannot be built.
    """
    teacher, weighting = build_teacher(cfg), build_weighting(cfg).eval()
    weighting.load_state_dict(memory or weighting.state_dict())
    for record in records:
        sample, annotations = load_sample(cfg, record)
        view = teacher.view([sample], tuple(sample["image"].shape[1:]), cfg.INPUT.FORMAT)
        targets = sample["instances"].to(teacher.device)
        losses = teacher.per_instance_losses(view, [targets])
        stats = TeacherStats(losses, targets.gt_classes)
        if weighting.requires_quality:
            stats.quality = teacher.quality(view, [targets])
        if weighting.requires_student:
            stats.student = _student_losses(student, sample)
        weights = weighting(stats, [targets.gt_boxes.tensor], {})
        yield ImageStats(
            convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT),
            sample["instances"].gt_boxes.tensor,
            annotations,
            weights.loss.cpu(),
            weights.instance.cpu(),
            {k: weighting.total({k: x}).cpu() for k, x in losses.components.items()},
        )


@torch.no_grad()
def _student_losses(student: nn.Module, sample: dict) -> PerInstanceLosses:
    images = student.preprocess_image([sample])
    targets = [sample["instances"].to(student.device)]
    return per_instance_losses(student, images, student.backbone(images.tensor), targets)


def read_records(dataset: str) -> dict | None:
    """Read the side file of a rendered dataset.

    Returns:
        {image name: entry}; None if the dataset has no side file.

    Raises:
        AIDError: the file was not written by the renderer.
    """
    root = MetadataCatalog.get(dataset).get("kitti_root", None)
    path = os.path.join(root or "", "training", "scenes.json")
    if root is None or not os.path.isfile(path):
        return None
    try:
        with open(path) as f:
            return json.load(f)["scenes"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise AIDError(f"{path} is not a side file of datasets/make_synthetic_kitti.py") from error


def groups_of(classes: list[str]) -> list[str]:
    """Names of all groups in the order of the figure: classes (without doubts), then doubts."""
    return [*map(_group_of_class, classes), *DOUBTS]


def group_of(annotation: dict, side: float, known: dict | None, classes: list[str]) -> str:
    """Group of an instance: the first of DOUBTS that applies, otherwise its class.

    Args:
        annotation: annotation of the dataset.
        side: square root of the box area, in pixels of the network's input.
        known: entry of the side file for this label; None without a side file.
        classes: class names, by category id.
    """
    spoiled = known["spoiled"] if known is not None else None
    if known is not None:
        hidden = known["visible"] < HIDDEN_VISIBLE
    else:
        hidden = annotation.get("occluded", 0) == HIDDEN_OCCLUDED
    doubts = (spoiled == "class", spoiled == "jitter", hidden, side < TINY_SIDE)
    applying = (doubt for doubt, holds in zip(DOUBTS, doubts, strict=True) if holds)
    return next(applying, _group_of_class(classes[annotation["category_id"]]))


def _group_of_class(name: str) -> str:
    """Name of a class's group, which is its own name unless that is the name of a doubt."""
    plain = name
    while plain.endswith(CLASS):
        plain = plain.removesuffix(CLASS)
    return name + CLASS if plain in DOUBTS else name
