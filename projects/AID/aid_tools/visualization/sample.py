"""Image of a dataset at test size, with its ground truth."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

from aid.data.ignore_regions import GroundTruth, region_boxes
from aid.data.images import clear_image_errors, longest_side, read_image

__all__ = ["load_sample"]


def load_sample(cfg: CfgNode, record: dict) -> tuple[dict, list[dict]]:
    """Load an image at test size with its ground truth, without crowd annotations.

    With INPUT.IGNORE_REGIONS these are regions of the :class:`GroundTruth`.

    Args:
        cfg: config of the detector that gets the image.
        record: record of a dataset, in Detectron2's standard format.

    Returns:
        Input of the model with ``instances`` (G), and the G annotations.

    Raises:
        AIDError: the image cannot be used.
    """
    longest = longest_side(cfg, is_train=False)
    with clear_image_errors(record["file_name"]):
        image = read_image(record["file_name"], cfg.INPUT.FORMAT, longest)
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    transform = resize.get_transform(image)
    image = transform.apply_image(image)
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = transform.apply_box(np.array(boxes, dtype=np.float64).reshape(-1, 4))
    instances = Instances(image.shape[:2])
    if cfg.INPUT.IGNORE_REGIONS:
        regions = transform.apply_box(region_boxes(record["annotations"]))
        instances = GroundTruth(image.shape[:2], Boxes(regions))
    instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
    instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
    sample = {
        "image": torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "height": record["height"],
        "width": record["width"],
        "file_name": record["file_name"],
        "instances": instances,
    }
    return sample, annotations
