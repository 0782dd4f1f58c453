"""A trained detector, read back for use: no data set, no teacher."""

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from aid.checkpoint import StrictCheckpointer
from aid.config import get_value
from aid.modeling.families import num_classes_key
from aid.modeling.meta_arch import plain_architecture
from aid.modeling.teacher import load_teacher_config
from aid.utils.errors import AIDError

__all__ = ["classes_of", "load_config_of", "load_detector"]


def load_config_of(
    config_file: str, weights: str | None, device: str | None, opts: list[str] = ()
) -> CfgNode:
    """The config of a detector that is to be used as it is.

    Args:
        config_file: path, or a name in Detectron2's model zoo.
        weights: path or URL; None for the config's own.
        device: such as "cpu" or "cuda:1"; None for the config's own, or the CPU if that is not
            here.
        opts: ``KEY VALUE`` pairs that override the file.

    Raises:
        AIDError: the config is malformed, there are no weights, or no such device.
    """
    cfg = load_teacher_config(config_file, "--config-file", opts)
    # A student is Detectron2's detector, under Detectron2's names.
    cfg.MODEL.META_ARCHITECTURE = plain_architecture(cfg.MODEL.META_ARCHITECTURE)
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise AIDError(f"{config_file} names no weights: add --weights FILE")
    wanted = device or cfg.MODEL.DEVICE
    if not _is_here(wanted):
        if device:
            raise AIDError(f"--device {device} is not here: choose cpu, or leave --device out")
        wanted = "cpu"
    cfg.MODEL.DEVICE = wanted
    return cfg


def _is_here(device: str) -> bool:
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError):  # torch has no one error for it
        return False
    return True


def load_detector(cfg: CfgNode) -> nn.Module:
    """The detector of a config with its weights, in eval mode.

    Raises:
        AIDError: the weights cannot be read or do not fit the config.
    """
    detector = build_model(cfg)
    StrictCheckpointer(detector, "weights").load(cfg.MODEL.WEIGHTS)
    return detector.eval()


def classes_of(cfg: CfgNode) -> tuple[list[str], list[int]]:
    """Names and COCO category ids of the detector's classes, by its data set's metadata.

    Where no data set of the config with as many classes is registered, both are their numbers.
    """
    number = get_value(cfg, num_classes_key(cfg) or "MODEL.ROI_HEADS.NUM_CLASSES")
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(dataset)
        names = metadata.get("thing_classes", ())
        if len(names) == number:
            to_class = metadata.get("thing_dataset_id_to_contiguous_id", {})
            to_id = {k: category for category, k in to_class.items()}
            return list(names), [to_id.get(k, k) for k in range(number)]
    return [str(k) for k in range(number)], list(range(number))
