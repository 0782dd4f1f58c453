"""Evaluation of a checkpoint, without training."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..checkpoint import StrictCheckpointer, check_stored_classes
from ..data.classes import known_classes
from ..modeling.build import build_detector
from ..utils.files import lock_folder
from .output_folder import write_results
from .setup import weights_to_evaluate
from .trainer import AIDTrainer

__all__ = ["evaluate"]


def evaluate(cfg: CfgNode, resume: bool) -> dict:
    """Evaluate a checkpoint on DATASETS.TEST, without building teachers.

    Writes the results to OUTPUT_DIR/inference/metrics.json.

    Args:
        cfg, resume: see :func:`~aid.engine.setup.weights_to_evaluate`.

    Raises:
        AIDError: OUTPUT_DIR is in use by another run; there are no weights, they cannot be read,
            they do not fit the detector, or they are of a detector of other classes than the
            dataset.
    """
    if comm.is_main_process():
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        lock_folder(cfg.OUTPUT_DIR)
    model = build_detector(cfg)
    weights = weights_to_evaluate(cfg, resume)
    logging.getLogger(__name__).info("Evaluating %s", weights)
    checkpointer = StrictCheckpointer(model, "MODEL.WEIGHTS", "--config-file")
    stored = checkpointer.load(weights).get("classes")
    names = known_classes(cfg.DATASETS.TEST)
    remedy = "give the dataset the names and the order of the detector's classes"
    check_stored_classes(stored, names, f"MODEL.WEIGHTS {weights}", "DATASETS.TEST has", remedy)
    results = AIDTrainer.test(cfg, model)
    if comm.is_main_process():
        write_results(os.path.join(cfg.OUTPUT_DIR, "inference"), results)
        verify_results(cfg, results)
    return results
