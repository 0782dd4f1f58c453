"""Check of the masks in a dataset for detectors like Mask R-CNN."""

from importlib.util import find_spec

from detectron2.config import CfgNode

from ..utils.errors import AIDError

__all__ = ["check_masks"]


def check_masks(cfg: CfgNode, key: str, name: str, records: list[dict]) -> None:
    """Check that a dataset has usable masks, before Detectron2 reads the first one.

    Args:
        cfg: a config with MODEL.MASK_ON True.
        key: "TRAIN" or "TEST".
        name: of the dataset.
        records: of the dataset, in Detectron2's standard format.

    Raises:
        AIDError: a label has no mask, or a mask whose format training cannot read or crop.
    """
    labels = [
        (record, label)
        for record in records
        for label in record.get("annotations", ())
        # Training skips crowds, COCO's metric does not.
        if key == "TEST" or not label.get("iscrowd", 0)
    ]
    where = f"DATASETS.{key}: {name}"
    without = [record["file_name"] for record, label in labels if not label.get("segmentation")]
    if without:
        raise AIDError(
            f"{where} has no mask for {len(without)} of {len(labels)} objects, first in "
            f"{without[0]}, but MODEL.MASK_ON is True: choose a detector without masks, or data "
            "with a segmentation for every object"
        )
    if key == "TEST":
        return
    polygons = sum(isinstance(label["segmentation"], list) for _, label in labels)
    if cfg.INPUT.MASK_FORMAT == "polygon" and polygons < len(labels):
        raise AIDError(
            f"{where} has masks that are no polygons, {len(labels) - polygons} of {len(labels)}: "
            "set INPUT.MASK_FORMAT to bitmask"
        )
    if cfg.INPUT.CROP.ENABLED and polygons and find_spec("shapely") is None:
        raise AIDError(
            f"{where} has masks that are polygons, which INPUT.CROP cuts with shapely: install it "
            "(pip install shapely), or turn INPUT.CROP.ENABLED off"
        )
