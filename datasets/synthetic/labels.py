"""What KITTI's label file says of a rendered scene, rightly or, on demand, wrongly."""

import math
from dataclasses import dataclass

import numpy as np

from .canvas import Camera
from .render import SeenObject

__all__ = ["Label", "LabelNoise", "label_objects", "spoil"]

# Below this share of the picture's height, or of its own silhouette, an object is not labelled but
# a DontCare region.
MIN_HEIGHT = 0.09
MIN_VISIBLE = 0.15
MAX_TRUNCATED = 0.9
# Shares of the silhouette that are visible, above which KITTI's occlusion is 0 and 1.
FULLY_VISIBLE, PARTLY_VISIBLE = 0.85, 0.45
CLASSES = ("Car", "Pedestrian", "Cyclist")
MIN_JITTER, MAX_JITTER = 0.25, 0.6


@dataclass(frozen=True)
class Label:
    """A line of a label file, and what is known about it.

    Attributes:
        type, bbox: as the file says; box x1, y1, x2, y2 in pixels.
        rest: the fields between type and box, and those after it.
        visible: share of the silhouette that can be seen, 0 to 1.
        spoiled: "class", "jitter", or None.
        true_type, true_bbox: as they should be.
    """

    type: str
    bbox: tuple[float, float, float, float]
    rest: tuple[str, str]
    visible: float
    spoiled: str | None
    true_type: str
    true_bbox: tuple[float, float, float, float]

    @property
    def line(self) -> str:
        box = " ".join(f"{edge:.2f}" for edge in self.bbox)
        return f"{self.type} {self.rest[0]} {box} {self.rest[1]}"

    @property
    def record(self) -> dict:
        """The label's entry in the side file."""
        return {
            "type": self.true_type,
            "bbox": [round(edge, 2) for edge in self.true_bbox],
            "visible": round(self.visible, 3),
            "spoiled": self.spoiled,
        }


@dataclass(frozen=True)
class LabelNoise:
    """Shares of the objects of the three classes whose label is spoiled, each from 0 to 1.

    Attributes:
        wrong_class, jitter, missing: of all objects, at random.
        cyclist_as_pedestrian: of the cyclists that are left; a systematic error, which a detector
            learns.
    """

    wrong_class: float = 0.0
    jitter: float = 0.0
    missing: float = 0.0
    cyclist_as_pedestrian: float = 0.0


def label_objects(seen: list[SeenObject], camera: Camera, height: int, width: int) -> list[Label]:
    """Correct labels of a picture of ``height`` x ``width`` pixels, near objects first."""
    labels = (_label(obj, camera, height, width) for obj in reversed(seen))
    return [label for label in labels if label is not None]


def _label(obj: SeenObject, camera: Camera, height: int, width: int) -> Label | None:
    x1, y1, x2, y2 = obj.extent
    bbox = (max(x1, 0.0), max(y1, 0.0), min(x2, width - 1.0), min(y2, height - 1.0))
    inside = max(0.0, bbox[2] - bbox[0]) * max(0.0, bbox[3] - bbox[1])
    if min(bbox[2] - bbox[0], bbox[3] - bbox[1]) < 1 or obj.visible == 0:
        return None
    truncated = max(0.0, 1 - inside / ((x2 - x1) * (y2 - y1)))
    unclear = y2 - y1 < MIN_HEIGHT * height or obj.visible < MIN_VISIBLE
    if unclear or truncated > MAX_TRUNCATED:
        rest = "-1 -1 -10", "-1 -1 -1 -1000 -1000 -1000 -10"
        return Label("DontCare", bbox, rest, obj.visible, None, "DontCare", bbox)
    occluded = (obj.visible < FULLY_VISIBLE) + (obj.visible < PARTLY_VISIBLE)
    s = obj.standing
    rotation = math.remainder(s.rotation, 2 * math.pi)
    alpha = math.remainder(rotation - math.atan2(s.x, s.z), 2 * math.pi)
    solid = (*s.model.size, s.x, camera.height, s.z, rotation)
    rest = f"{truncated:.2f} {occluded} {alpha:.2f}", " ".join(f"{value:.2f}" for value in solid)
    return Label(s.model.type, bbox, rest, obj.visible, None, s.model.type, bbox)


def spoil(
    labels: list[Label], noise: LabelNoise, rng: np.random.Generator, height: int, width: int
) -> tuple[list[Label], list[Label]]:
    """Spoil a share of the labels of the three classes, each in one way at most.

    Returns:
        The labels that remain, some of them wrong, and the labels that are missing.
    """
    kept, missing = [], []
    for label in labels:
        # One draw for every label, so that more noise of one kind leaves the others where they are.
        share, sub_rng = rng.random(), np.random.default_rng(rng.integers(2**32))
        if label.type not in CLASSES:
            kept.append(label)
        elif share < noise.wrong_class:
            kept.append(_with_wrong_class(label, sub_rng))
        elif share < noise.wrong_class + noise.jitter:
            kept.append(_with_jitter(label, sub_rng, height, width))
        elif share < noise.wrong_class + noise.jitter + noise.missing:
            missing.append(label)
        elif label.type == "Cyclist" and sub_rng.random() < noise.cyclist_as_pedestrian:
            kept.append(_with_class(label, "Pedestrian"))
        else:
            kept.append(label)
    return kept, missing


def _with_wrong_class(label: Label, rng: np.random.Generator) -> Label:
    others = [kind for kind in CLASSES if kind != label.type]
    return _with_class(label, others[rng.integers(len(others))])


def _with_class(label: Label, kind: str) -> Label:
    return Label(kind, label.bbox, label.rest, label.visible, "class", label.type, label.bbox)


def _with_jitter(label: Label, rng: np.random.Generator, height: int, width: int) -> Label:
    """Shift the box by a quarter or more of its size, and change its size."""
    x1, y1, x2, y2 = label.bbox
    w, h = x2 - x1, y2 - y1
    shift = rng.uniform(MIN_JITTER, MAX_JITTER, 2) * rng.choice((-1, 1), 2)
    scale = rng.uniform(0.75, 1.3, 2)
    cx, cy = (x1 + x2) / 2 + shift[0] * w, (y1 + y2) / 2 + shift[1] * h
    w, h = w * scale[0], h * scale[1]
    bbox = (
        min(max(cx - w / 2, 0.0), width - 3.0),
        min(max(cy - h / 2, 0.0), height - 3.0),
        max(min(cx + w / 2, width - 1.0), 2.0),
        max(min(cy + h / 2, height - 1.0), 2.0),
    )
    bbox = tuple(float(edge) for edge in bbox)
    return Label(label.type, bbox, label.rest, label.visible, "jitter", label.type, label.bbox)
