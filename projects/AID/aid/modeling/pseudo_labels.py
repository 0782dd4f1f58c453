"""Pseudo-labels: detections of a teacher in place of the ground truth of unlabeled images."""

import logging

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances

from ..utils.errors import AIDError, check_not_negative
from .teacher_base import TeacherBase, TeacherView
from .weighting import ComponentWeights, Weights
from .weighting.maps import rasterize_boxes

__all__ = ["PseudoLabels", "is_unlabeled", "warn_of_unknown_classes"]


def is_unlabeled(sample: dict) -> bool:
    """Whether a sample of a batch has no ground truth, which its key "unlabeled" says."""
    return bool(sample.get("unlabeled", False))


def warn_of_unknown_classes(teacher: TeacherBase) -> None:
    """Warn if a teacher cannot label all classes of the student."""
    class_map = teacher.class_map
    if class_map and class_map.unknown:
        logging.getLogger(__name__).warning(
            "UNLABELED.SHARE: the teacher of %s has no counterpart of %s: on unlabeled images "
            "these objects are background to the student",
            teacher.name,
            ", ".join(class_map.student[k] for k in class_map.unknown),
        )


class PseudoLabels:
    """Pseudo-labels of unlabeled images, and the imitation weights of these images.

    Pseudo-labels are the detections of a teacher with a score s above a threshold. Their weight is
    s ** alpha, which is AID's weight exp(-alpha * D) with D = -log(s), the cross-entropy that the
    teacher has on a detection if it is right.
    """

    @configurable
    def __init__(self, *, score_thresh: float = 0.5, alpha: float = 0.0):
        """
        Args:
            score_thresh: least score of a pseudo-label.
            alpha: exponent of the score; 0 is weight 1 for all.

        Raises:
            AIDError: a threshold outside of [0, 1], or a negative or infinite exponent.
        """
        if not 0 <= score_thresh <= 1:
            raise AIDError(
                f"UNLABELED.SCORE_THRESH is {score_thresh}: it is the least score of a "
                "pseudo-label, and must be in [0, 1]"
            )
        check_not_negative("UNLABELED.ALPHA", alpha)
        self.score_thresh = score_thresh
        self.alpha = alpha

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"score_thresh": cfg.UNLABELED.SCORE_THRESH, "alpha": cfg.UNLABELED.ALPHA}

    def label(self, teacher: TeacherBase, view: TeacherView) -> list[Instances]:
        """Pseudo-labels of each image.

        Args:
            teacher: whose detections they are, with its own thresholds of score and suppression.
            view: of the teacher, of unlabeled images.

        Returns:
            For each image instances with ``gt_boxes`` and ``gt_classes``, which Detectron2 trains
            on, and ``scores``.
        """
        labels = []
        for detections in teacher.detections(view):
            boxes = Boxes(detections.pred_boxes.tensor.float())
            chosen = (detections.scores >= self.score_thresh) & boxes.nonempty()
            instances = Instances(detections.image_size)
            instances.gt_boxes = boxes[chosen]
            instances.gt_classes = detections.pred_classes[chosen]
            instances.scores = detections.scores[chosen].float()
            labels.append(instances)
        return labels

    def weights(
        self, labels: list[Instances], levels: dict[str, tuple[tuple[int, int], int]]
    ) -> Weights:
        """Compute the imitation weights of unlabeled images.

        The weight outside of all boxes is the mean weight of the image's pseudo-labels, 1 if there
        are none. Predicted classes and boxes have the same weights, since D has no components.

        Args:
            labels: output of :meth:`label`.
            levels: see :meth:`Weighting.forward`.
        """
        scores = torch.cat([x.scores for x in labels])
        instance = scores**self.alpha
        of_image = instance.split([len(x) for x in labels])
        rest = torch.stack([w.mean() if len(w) else w.new_ones(()) for w in of_image])
        boxes = [x.gt_boxes.tensor for x in labels]
        maps = rasterize_boxes(boxes, instance, dict.fromkeys(levels, rest), levels)
        components = ComponentWeights(instance, instance, rest)
        return Weights(maps, instance, -scores.log(), components)
