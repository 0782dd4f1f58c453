"""Evaluation of a checkpoint, without training."""

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..checkpoint import SafeCheckpointer, StrictCheckpointer
from ..modeling.build import build_detector
from ..utils.errors import AIDError
from .trainer import AIDTrainer

__all__ = ["evaluate"]


def evaluate(cfg: CfgNode, resume: bool) -> dict:
    """Evaluate MODEL.WEIGHTS, or the last checkpoint of OUTPUT_DIR, without building teachers.

    Args:
        cfg: of the run.
        resume: whether to evaluate the last checkpoint of OUTPUT_DIR, if there is one.

    Raises:
        AIDError: the weights cannot be read or do not fit the detector.
    """
    model = build_detector(cfg)
    last = SafeCheckpointer(model, cfg.OUTPUT_DIR)
    weights = last.get_checkpoint_file() if resume and last.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not weights:
        raise AIDError("--eval-only needs weights: add MODEL.WEIGHTS PATH, or --resume")
    StrictCheckpointer(model, "MODEL.WEIGHTS").load(weights)
    results = AIDTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
