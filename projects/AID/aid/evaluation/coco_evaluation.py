"""COCO's metric of boxes and masks on any dataset of Detectron2's catalog."""

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

__all__ = ["build_coco_evaluator"]


def build_coco_evaluator(dataset_name: str, output_dir: str) -> COCOEvaluator:
    """Detectron2's evaluator; a dataset without a json file is converted anew each time.

    A detector with masks is judged by them too, under "segm", where every label has one; Detectron2
    would fail elsewhere.
    """
    metadata = MetadataCatalog.get(dataset_name)
    generated = metadata.get("json_file", None) is None
    evaluator = COCOEvaluator(dataset_name, output_dir=output_dir, allow_cached_coco=False)
    if generated:
        # The evaluator has read its converted copy. Left in the metadata, the path would be taken
        # for the dataset's own, stale after the next change of data or output folder.
        del metadata.json_file
    labels = evaluator._coco_api.dataset.get("annotations", ())
    if not all(label.get("segmentation") for label in labels):
        evaluator._tasks = ("bbox",)
    return evaluator
