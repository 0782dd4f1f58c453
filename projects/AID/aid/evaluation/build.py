"""Choice of a dataset's evaluator by ``evaluator_type`` in its metadata."""

from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ..utils.errors import AIDError
from .coco_evaluation import CheckedCOCOEvaluator
from .kitti_evaluation import KITTIEvaluator

__all__ = ["build_evaluator", "check_evaluator"]

# Values of evaluator_type; None is a dataset registered without it, as in Detectron2's tutorial.
TYPES = ("coco", "kitti", None)


def build_evaluator(
    dataset_name: str, output_dir: str, kpt_oks_sigmas: Sequence[float] = ()
) -> DatasetEvaluator:
    """Build the evaluator of a dataset.

    Args:
        dataset_name: in Detectron2's catalogs.
        output_dir: folder for detections.
        kpt_oks_sigmas: TEST.KEYPOINT_OKS_SIGMAS; () are COCO's own.

    Raises:
        AIDError: see :func:`check_evaluator`.
    """
    check_evaluator(dataset_name)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind == "kitti":
        return KITTIEvaluator(dataset_name, output_dir)
    return CheckedCOCOEvaluator(dataset_name, output_dir, kpt_oks_sigmas)


def check_evaluator(dataset_name: str) -> None:
    """Check that a dataset's evaluator is available.

    Raises:
        AIDError: the evaluator_type is unknown, the metadata lack what it requires, or the dataset
            was registered with a ``min_score``, as detections in place of labels.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type", None)
    if metadata.get("has_detections", False):
        raise AIDError(
            f"DATASETS.TEST: {dataset_name} has detections in place of labels (min_score): "
            "evaluate on a dataset with labels"
        )
    if kind not in TYPES:
        raise AIDError(
            f"DATASETS.TEST: {dataset_name} has evaluator_type {kind!r}, this project evaluates by "
            "COCO's and KITTI's metrics only: set evaluator_type 'coco' in its metadata"
        )
    if kind == "kitti" and not hasattr(metadata, "kitti_labels"):
        raise AIDError(
            f"DATASETS.TEST: {dataset_name} has evaluator_type 'kitti', but no kitti_labels in its "
            "metadata: register it with aid.data.register_kitti, or set evaluator_type 'coco'"
        )
