"""COCO's metric for boxes and masks, for any dataset in Detectron2's catalog."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from ..utils.d2 import coco_annotations, set_coco_tasks

__all__ = ["build_coco_evaluator"]


def build_coco_evaluator(dataset_name: str, output_dir: str) -> COCOEvaluator:
    """Build Detectron2's evaluator; it converts a dataset without a JSON file anew each time.

    Masks are evaluated only if every label has one; Detectron2 would fail otherwise.
    """
    metadata = MetadataCatalog.get(dataset_name)
    generated = metadata.get("json_file", None) is None
    evaluator = COCOEvaluator(dataset_name, output_dir=output_dir, allow_cached_coco=False)
    if generated:
        # The evaluator has read the converted file already. Its path must not stay in the metadata:
        # later evaluators would read this file even if data or output folder have changed.
        del metadata.json_file
    if not all(label.get("segmentation") for label in coco_annotations(evaluator)):
        set_coco_tasks(evaluator, ("bbox",))
    return evaluator
