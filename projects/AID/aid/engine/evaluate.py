"""Evaluation of a checkpoint, without training."""

import logging

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..checkpoint import StrictCheckpointer
from ..modeling.build import build_detector
from .setup import weights_to_evaluate
from .trainer import AIDTrainer

__all__ = ["evaluate"]


def evaluate(cfg: CfgNode, resume: bool) -> dict:
    """Evaluate a checkpoint on DATASETS.TEST, without building teachers.

    Args:
        cfg, resume: see :func:`~aid.engine.setup.weights_to_evaluate`.

    Raises:
        AIDError: there are no weights, they cannot be read, or they do not fit the detector.
    """
    model = build_detector(cfg)
    weights = weights_to_evaluate(cfg, resume)
    logging.getLogger(__name__).info("Evaluating %s", weights)
    StrictCheckpointer(model, "MODEL.WEIGHTS").load(weights)
    results = AIDTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
