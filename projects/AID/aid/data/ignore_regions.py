"""Regions of images that are neither object nor background: crowds, and KITTI's ignored types.

In Detectron2's standard format they are annotations with ``iscrowd`` 1.
"""

import logging
from typing import Any

import numpy as np
from detectron2.structures import Boxes, BoxMode, Instances

from ..utils.text import counted
from .detections import DetectionMapper, transformed_boxes

__all__ = ["GroundTruth", "IgnoreRegionsMapper", "ignore_boxes", "log_regions", "region_boxes"]


class GroundTruth(Instances):
    """Instances of an image, and the regions of it that are neither object nor background.

    Detectron2 moves it to a device and reads it like other instances. A selection of instances is
    without the regions.
    """

    def __init__(self, image_size: tuple[int, int], ignore_boxes: Boxes, **fields: Any):
        """
        Args:
            image_size: height and width.
            ignore_boxes: the regions, any number of them.
            fields: of the instances.
        """
        super().__init__(image_size, **fields)
        self._ignore_boxes = ignore_boxes

    def to(self, *args: Any, **kwargs: Any) -> "GroundTruth":
        fields = super().to(*args, **kwargs).get_fields()
        return GroundTruth(self.image_size, self._ignore_boxes.to(*args, **kwargs), **fields)

    @property
    def ignore_boxes(self) -> Boxes:
        """The regions."""
        return self._ignore_boxes


def ignore_boxes(truth: Instances) -> Boxes:
    """Regions of an image that are neither object nor background; none for plain instances.

    Args:
        truth: with ``gt_boxes``.
    """
    if isinstance(truth, GroundTruth):
        return truth.ignore_boxes
    return Boxes(truth.gt_boxes.tensor[:0])


def region_boxes(annotations: list[dict]) -> np.ndarray:
    """Boxes (D, 4), XYXY in pixels, of the annotations that are regions to ignore.

    A region that is annotated for several classes counts once.
    """
    regions = [x for x in annotations if x.get("iscrowd", 0)]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in regions]
    return np.array(list(dict.fromkeys(map(tuple, boxes))), dtype=np.float64).reshape(-1, 4)


def log_regions(records: list[dict]) -> None:
    """Log the number of regions in the training set."""
    counts = [len(region_boxes(x.get("annotations", []))) for x in records]
    logging.getLogger(__name__).info(
        "INPUT.IGNORE_REGIONS: %s in %d of %s",
        counted(sum(counts), "ignore region"),
        sum(count > 0 for count in counts),
        counted(len(counts), "training image"),
    )


class IgnoreRegionsMapper(DetectionMapper):
    """Training mapper that keeps the regions to ignore, which Detectron2's drops."""

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        regions = region_boxes(dataset_dict["annotations"])
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        boxes = transformed_boxes(regions, transforms, image_shape)
        boxes = boxes[boxes.nonempty(threshold=1e-5)]
        fields = dataset_dict["instances"].get_fields()
        dataset_dict["instances"] = GroundTruth(image_shape, boxes, **fields)
