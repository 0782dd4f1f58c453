"""COCO's metric for boxes and masks, for any dataset in Detectron2's catalog."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from ..data.masks import usable_mask
from ..utils.d2 import coco_annotations, coco_images, set_coco_tasks
from ..utils.errors import AIDError

__all__ = ["build_coco_evaluator"]


def build_coco_evaluator(dataset_name: str, output_dir: str) -> COCOEvaluator:
    """Build Detectron2's evaluator; it converts a dataset without a JSON file anew each time.

    Masks are evaluated only if every label has one; Detectron2 would fail otherwise.

    Raises:
        AIDError: the numbers of a mask are not those of its image.
    """
    metadata = MetadataCatalog.get(dataset_name)
    generated = metadata.get("json_file", None) is None
    evaluator = COCOEvaluator(dataset_name, output_dir=output_dir, allow_cached_coco=False)
    if generated:
        # The evaluator has read the converted file already. Its path must not stay in the metadata:
        # later evaluators would read this file even if data or output folder have changed.
        del metadata.json_file
    images = coco_images(evaluator)
    labels = coco_annotations(evaluator)
    for label in labels:
        image = images[label["image_id"]]
        try:
            # Of the polygons only those that training sees, too.
            label["segmentation"] = usable_mask(
                label.get("segmentation"), image["width"], image["height"]
            )
        except (OverflowError, ValueError) as error:
            raise AIDError(
                f"{dataset_name}: annotation {label['id']} of image {label['image_id']}: {error}"
            ) from None
    if not all(label["segmentation"] for label in labels):
        set_coco_tasks(evaluator, ("bbox",))
    return evaluator
