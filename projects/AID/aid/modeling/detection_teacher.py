"""Teacher of which only detections are known, which any program can have made."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList, Instances
from torch import nn

from ..data.detections import DETECTIONS
from ..utils.errors import AIDError
from .families import (
    DetectionQuality,
    GivenDetections,
    PerInstanceLosses,
    best_detections,
    num_classes,
)
from .teacher_base import TeacherBase, TeacherView

__all__ = ["DetectionTeacher"]

# Lower bound of score and IoU in D, which stand for no detection at all.
MIN_QUALITY = 0.01


class DetectionTeacher(TeacherBase):
    """Detections of the training images in place of a network; see :class:`TeacherBase`.

    Samples bring them along, see :class:`~aid.data.detections.DetectionMapper`. There are no
    feature maps, and levels are those of the student.

    The loss D of an instance is that of its best detection, of its class and with the largest
    product of score s and IoU: "cls" is -log s, "box" is 1 - IoU. Score and IoU count as
    :data:`MIN_QUALITY` at least, also without any detection. The loss of the background is 0: what
    a program does not detect is not in its file.
    """

    has_heads = True
    has_features = False

    def __init__(self, student: nn.Module, name: str):
        """
        Args:
            student: as Detectron2 built it.
            name: see :class:`TeacherBase`.
        """
        cfg = get_cfg()
        cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST = student.input_format, 0
        super().__init__(GivenDetections(num_classes(student)), cfg, name, weights="unknown")
        self._shapes = student.backbone.output_shape()
        self.levels = tuple(self._shapes)
        self._device: torch.device = student.device

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def view(
        self, batched_inputs: list[dict], padded_size: tuple[int, int], input_format: str
    ) -> TeacherView:
        if any(DETECTIONS not in x for x in batched_inputs):
            raise AIDError(
                f"an image has no detections of the teacher of {self.name}: only the training "
                "images of train_net.py have them"
            )
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        no_pixels = torch.empty(len(sizes), 0, *padded_size, device=self.device)
        detections = [x[DETECTIONS].to(self.device) for x in batched_inputs]
        return TeacherView(ImageList(no_pixels, sizes), {}, detections)

    def per_instance_losses(
        self, view: TeacherView, targets: list[Instances], background: bool = True
    ) -> PerInstanceLosses:
        best = self.quality(view, targets)
        score, iou = (x.clamp(min=MIN_QUALITY) for x in (best.score, best.iou))
        num_levels = len(self.levels)
        return PerInstanceLosses(
            self.levels,
            {"cls": -score.log(), "box": 1 - iou},
            {"cls": score.new_zeros(len(targets), num_levels)},
            score.new_full((len(score), num_levels), 1 / num_levels),
        )

    def quality(self, view: TeacherView, targets: list[Instances]) -> DetectionQuality:
        assert view.detections is not None
        device = targets[0].gt_boxes.device
        return best_detections([x.to(device) for x in view.detections], targets)

    @property
    def device(self) -> torch.device:
        return self._device

    def follow(self, device: torch.device) -> None:
        self._device = device
