"""Random images with random ground truth."""

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, PolygonMasks

from aid.config import get_value
from aid.modeling.families import num_classes_key
from aid.utils.errors import AIDError

from .settings import Settings

__all__ = ["random_batch"]

SMALLEST_SIDE = 16.0  # pixels


def random_batch(settings: Settings, cfg: CfgNode) -> list[dict]:
    """Generate noise images with randomly placed boxes.

    Box sides are log-uniform between 16 pixels and half of the image's shorter side, so that every
    FPN level has instances. If the student has a mask head, each mask covers its whole box.

    Args:
        settings: size, batch, number of instances and seed.
        cfg: the student's config.

    Returns:
        Standard input of a Detectron2 model, on the CPU.

    Raises:
        AIDError: the config key for the number of classes is unknown for the meta-architecture.
    """
    key = num_classes_key(cfg)
    if key is None:
        raise AIDError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not supported by the "
            "benchmark: choose a student of configs/AID or configs/Quickstart"
        )
    num_classes = get_value(cfg, key)
    generator = torch.Generator().manual_seed(settings.seed)
    height, width = size = settings.height, settings.width
    limits = torch.tensor([float(width), float(height)])
    largest = max(1.0, min(size) / 2)
    smallest = min(SMALLEST_SIDE, largest)
    n = settings.instances
    batch = []
    for _ in range(settings.batch):
        sides = smallest * (largest / smallest) ** torch.rand(n, 2, generator=generator)
        corner = torch.rand(n, 2, generator=generator) * (limits - sides)
        boxes = torch.cat([corner, corner + sides], dim=1)
        instances = Instances(size)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(num_classes, (n,), generator=generator)
        if cfg.MODEL.MASK_ON:
            outlines = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].numpy()
            instances.gt_masks = PolygonMasks([[outline] for outline in outlines])
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch
