"""Loading of a trained detector for inference, without its dataset or teacher."""

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from aid.checkpoint import StrictCheckpointer
from aid.config import get_value
from aid.data import read_coco
from aid.modeling.build import build_detector
from aid.modeling.families import num_classes_key
from aid.modeling.meta_arch import plain_architecture
from aid.modeling.teacher import load_teacher_config
from aid.utils.errors import AIDError

__all__ = ["classes_of", "load_config_of", "load_detector"]


def load_config_of(
    config_file: str, weights: str | None, device: str | None, opts: list[str] = ()
) -> CfgNode:
    """Load the config of a detector for inference.

    Args:
        config_file: path, or a name in Detectron2's model zoo.
        weights: path or URL; None for MODEL.WEIGHTS of the config.
        device: device name such as "cpu" or "cuda:1"; None for MODEL.DEVICE of the config, or the
            CPU if that device is not available.
        opts: ``KEY VALUE`` pairs that override the file.

    Raises:
        AIDError: the config is malformed or names no weights, or ``device`` is not available.
    """
    cfg = load_teacher_config(config_file, "--config-file", opts)
    # A student needs no distillation here: build Detectron2's detector, with the same parameters.
    cfg.MODEL.META_ARCHITECTURE = plain_architecture(cfg.MODEL.META_ARCHITECTURE)
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise AIDError(f"{config_file} names no weights: add --weights FILE")
    chosen = device or cfg.MODEL.DEVICE
    if not _is_available(chosen):
        if device:
            raise AIDError(f"--device {device} is not available: choose cpu, or omit --device")
        chosen = "cpu"
    cfg.MODEL.DEVICE = chosen
    return cfg


def _is_available(device: str) -> bool:
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError):  # the error depends on the device
        return False
    return True


def load_detector(cfg: CfgNode) -> nn.Module:
    """Build the detector of a config and load its weights; returns it in eval mode.

    Raises:
        AIDError: the weights cannot be read or do not fit the config.
    """
    detector = build_detector(cfg)
    StrictCheckpointer(detector, "weights").load(cfg.MODEL.WEIGHTS)
    return detector.eval()


def classes_of(cfg: CfgNode) -> tuple[list[str], list[int]]:
    """Names and COCO category ids of the detector's classes.

    They are those of the first dataset in DATASETS.TEST or DATASETS.TRAIN that is registered and
    has as many classes as the detector. Without such a dataset, names and ids are class indices.

    Raises:
        AIDError: the classes of a registered dataset are in a file that cannot be read, and no
            other dataset names them.
    """
    number = get_value(cfg, num_classes_key(cfg) or "MODEL.ROI_HEADS.NUM_CLASSES")
    unread = None
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        try:
            names, ids = _classes_in(dataset)
        except AIDError as error:
            unread = unread or error
            continue
        if len(names) == number:
            return names, ids
    if unread:
        raise unread
    return [str(k) for k in range(number)], list(range(number))


def _classes_in(dataset: str) -> tuple[list[str], list[int]]:
    """Names and category ids of a dataset; empty if it is not registered.

    A dataset in COCO's format that is not loaded yet has them in its file only.
    """
    metadata = MetadataCatalog.get(dataset)
    path = metadata.get("json_file", None)
    if dataset in DatasetCatalog.list():
        if path and metadata.get("thing_dataset_id_to_contiguous_id", None) is None:
            advice = "DATASETS names its dataset, from which the names of the classes are read"
            rows = sorted(read_coco(path, advice)["categories"], key=lambda row: row["id"])
            return [row["name"] for row in rows], [row["id"] for row in rows]
        if metadata.get("thing_classes", None) is None:
            try:
                DatasetCatalog.get(dataset)  # which may set them
            except OSError as error:
                raise AIDError(f"DATASETS: {dataset} cannot be loaded: {error}") from error
    names = metadata.get("thing_classes", ())
    to_class = metadata.get("thing_dataset_id_to_contiguous_id", {})
    to_id = {k: category for category, k in to_class.items()}
    return list(names), [to_id.get(k, k) for k in range(len(names))]
