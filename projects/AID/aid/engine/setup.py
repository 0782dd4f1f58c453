"""From command-line arguments to a frozen config and a working output folder."""

import argparse
import os

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import load_config
from ..errors import AIDError

__all__ = ["setup"]


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the config, check what can be checked early, and start logging.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        The frozen config. Its SEED is never negative: one that was drawn is written to the output
        folder's config.yaml, from where a resumed run takes it.

    Raises:
        AIDError: see :func:`load_config`; a dataset that is unknown, cannot be loaded, or has
            another number of classes than the model; a device that is not there.
    """
    if not args.config_file:
        raise AIDError("--config-file is missing: choose one under configs/")
    cfg = load_config(args.config_file, args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise AIDError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU here: add --num-gpus 0 to "
            "run on the CPU"
        )
    for key in ("TEST",) if args.eval_only else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            _check_dataset(cfg, key, name)
    if cfg.SEED < 0:
        cfg.SEED = _draw_seed(cfg, resume=args.resume)
    cfg.freeze()
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise AIDError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written: {error.strerror}"
        ) from error
    # What an evaluation writes goes beside its detections: config.yaml is for a later --resume.
    records = cfg.clone()
    if args.eval_only:
        records.defrost()
        records.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "inference")
    default_setup(records, args)
    # Detectron2 sets up its own logger and fvcore's.
    setup_logger(records.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="aid")
    return cfg


def _check_dataset(cfg: CfgNode, key: str, name: str) -> None:
    """Load a dataset once, so that what is wrong with it is said now and not hours later."""
    if name not in DatasetCatalog.list():
        known = ", ".join(n for n in DatasetCatalog.list() if "kitti" in n)
        raise AIDError(
            f"DATASETS.{key}: {name!r} is not registered; this project registers {known}, "
            "Detectron2 its own, and docs/getting_started.md shows how to add yours"
        )
    try:
        DatasetCatalog.get(name)
    except OSError as error:  # of Detectron2's own datasets
        raise AIDError(
            f"DATASETS.{key}: {name} cannot be loaded ({error}): check DETECTRON2_DATASETS"
        ) from error
    heads = "RETINANET" if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE else "ROI_HEADS"
    wanted, found = cfg.MODEL[heads].NUM_CLASSES, MetadataCatalog.get(name).get("thing_classes")
    if found is not None and len(found) != wanted:
        raise AIDError(
            f"MODEL.{heads}.NUM_CLASSES is {wanted}, but DATASETS.{key} {name} has {len(found)} "
            f"classes ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''}): make them equal"
        )


def _draw_seed(cfg: CfgNode, resume: bool) -> int:
    previous = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if resume and os.path.isfile(previous):
        return load_config(previous).SEED
    return comm.shared_random_seed()
