"""Labels of a rendered scene in KITTI's format, correct or with label noise."""

import math
from dataclasses import dataclass

import numpy as np

from .canvas import Camera
from .render import SeenObject

__all__ = ["Label", "LabelNoise", "label_objects", "spoil"]

# An object becomes a DontCare region if its height is below this share of the image height, its
# visible share below MIN_VISIBLE, or its truncation above MAX_TRUNCATED.
MIN_HEIGHT = 0.09
MIN_VISIBLE = 0.15
MAX_TRUNCATED = 0.9
# Visible shares from which KITTI's occlusion level is 0 and 1.
FULLY_VISIBLE, PARTLY_VISIBLE = 0.85, 0.45
CLASSES = ("Car", "Pedestrian", "Cyclist")
MIN_JITTER, MAX_JITTER = 0.25, 0.6


@dataclass(frozen=True)
class Label:
    """Line of a label file, with its ground truth.

    Attributes:
        type, bbox: type and box as written to the file; box x1, y1, x2, y2 in pixels.
        rest: fields between type and box, and fields after the box.
        visible: visible share of the silhouette, 0 to 1.
        spoiled: kind of label noise, "class" or "jitter"; None for a correct label.
        true_type, true_bbox: correct type and box.
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
        """Line of the label file, without line break."""
        box = " ".join(f"{edge:.2f}" for edge in self.bbox)
        return f"{self.type} {self.rest[0]} {box} {self.rest[1]}"

    @property
    def record(self) -> dict:
        """Entry of the label in the side file."""
        return {
            "type": self.true_type,
            "bbox": [round(edge, 2) for edge in self.true_bbox],
            "visible": round(self.visible, 3),
            "spoiled": self.spoiled,
        }


@dataclass(frozen=True)
class LabelNoise:
    """Shares of the objects of the three classes with a wrong label, each from 0 to 1.

    Attributes:
        wrong_class, jitter, missing: shares of all objects, drawn at random.
        cyclist_as_pedestrian: share of the cyclists without other noise; a systematic error, which
            a detector learns.
    """

    wrong_class: float = 0.0
    jitter: float = 0.0
    missing: float = 0.0
    cyclist_as_pedestrian: float = 0.0


def label_objects(seen: list[SeenObject], camera: Camera, height: int, width: int) -> list[Label]:
    """Create correct labels of an image of ``height`` x ``width`` pixels, near objects first."""
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
    """Apply label noise to the three classes, at most one kind for each label.

    Returns:
        The labels to write, some of them wrong, and the missing labels.
    """
    kept, missing = [], []
    for label in labels:
        # The same draws for every label, so that the other labels stay as they are if noise grows.
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
    """Shift the box by MIN_JITTER to MAX_JITTER of its size, and rescale it."""
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
