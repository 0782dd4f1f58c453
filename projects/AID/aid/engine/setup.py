"""From command-line arguments to a frozen config and a working output folder."""

import argparse
import os

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..config import get_value, load_config
from ..data.masks import check_masks
from ..data.register import register_from_file
from ..evaluation import check_evaluator
from ..modeling.families import num_classes_key
from ..utils.errors import AIDError
from .output_folder import check_output_folder, start_records

__all__ = ["check_config_file", "check_dataset", "setup"]


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the config, check what can be checked early, and start logging.

    Args:
        args: of :func:`~aid.engine.argument_parser`.

    Returns:
        The frozen config. Its SEED is never negative: one that was drawn is written to the output
        folder's config.yaml, from where a resumed run takes it.

    Raises:
        AIDError: see :func:`load_config`; a dataset that is unknown, cannot be loaded, or has
            another number of classes than the model, or no masks for one that predicts them; a
            device that is not there; an output folder that cannot be written, or that holds
            another run than the one to resume.
    """
    for path in args.register:
        register_from_file(path)
    check_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise AIDError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU here: add --num-gpus 0 to "
            "run on the CPU, or --num-processes for several processes"
        )
    num_gpus = 1 if args.num_gpus is None else args.num_gpus
    if cfg.MODEL.DEVICE == "cpu" and num_gpus * args.num_machines > 1:
        raise AIDError(
            f"MODEL.DEVICE is cpu, but --num-gpus is {num_gpus}: choose one of both; "
            "--num-processes starts several processes on the CPU"
        )
    if ":" in cfg.MODEL.DEVICE and comm.get_world_size() > 1:
        raise AIDError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE} is one GPU for several processes: write cuda"
        )
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED and not args.eval_only:
        raise AIDError(
            "SOLVER.AMP.ENABLED is on, but MODEL.DEVICE is cpu: mixed precision needs a GPU"
        )
    for key in ("TEST",) if args.eval_only else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            check_dataset(cfg, key, name)
    if cfg.SEED < 0:
        cfg.SEED = _draw_seed(cfg, resume=args.resume)
    cfg.freeze()
    # What an evaluation writes goes beside its detections: config.yaml is for a later --resume.
    records = cfg.clone()
    if args.eval_only:
        records.defrost()
        records.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "inference")
    check_output_folder(records, resume=args.resume and not args.eval_only)
    start_records(records, args)
    return cfg


def check_config_file(path: str) -> None:
    """Check that there is one, of the kind that :func:`load_config` reads.

    Raises:
        AIDError: there is none, or it is a LazyConfig.
    """
    if not path:
        raise AIDError("--config-file is missing: choose one under configs/")
    if path.endswith(".py"):
        raise AIDError(f"{path} is a LazyConfig: train with tools/lazyconfig_train_net.py")


def check_dataset(cfg: CfgNode, key: str, name: str) -> None:
    """Load a dataset once, so that what is wrong with it is said now and not hours later.

    Args:
        cfg: that names it.
        key: "TRAIN" or "TEST".
        name: of the dataset.

    Raises:
        AIDError: it is unknown, cannot be loaded, has another number of classes than the model, no
            masks for one that predicts them, nothing to train on, or images that cannot be told
            apart.
    """
    if name not in DatasetCatalog.list():
        known = ", ".join(n for n in DatasetCatalog.list() if "kitti" in n or "traffic" in n)
        raise AIDError(
            f"DATASETS.{key}: {name!r} is not registered; this project registers {known}, "
            "Detectron2 its own, and a file named by --register yours (docs/own_data.md)"
        )
    try:
        records = DatasetCatalog.get(name)
    except OSError as error:  # of Detectron2's own datasets
        raise AIDError(
            f"DATASETS.{key}: {name} cannot be loaded ({error}): check DETECTRON2_DATASETS"
        ) from error
    classes_key = num_classes_key(cfg)
    names = MetadataCatalog.get(name).get("thing_classes", None)
    if classes_key and names is not None and len(names) != get_value(cfg, classes_key):
        raise AIDError(
            f"{classes_key} is {get_value(cfg, classes_key)}, but DATASETS.{key} {name} "
            f"has {len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        )
    if key == "TEST":
        check_evaluator(name)
        _check_image_ids(records, name)
    elif not any(_has_object(record) for record in records):
        raise AIDError(
            f"DATASETS.TRAIN: {name} has no object to train on in {len(records)} images: check its "
            "labels, where only objects of the classes count that are no crowds or ignored regions"
        )
    if cfg.MODEL.MASK_ON:
        check_masks(cfg, key, name, records)


def _has_object(record: dict) -> bool:
    return any(not a.get("iscrowd", 0) for a in record.get("annotations", ()))


def _check_image_ids(records: list[dict], name: str) -> None:
    if not records:
        raise AIDError(f"DATASETS.TEST: {name} has no image")
    seen = {}
    for record in records:
        image_id, file_name = record.get("image_id"), record["file_name"]
        if image_id is None or image_id in seen:
            whose = "no image_id" if image_id is None else f"the image_id of {seen[image_id]}"
            raise AIDError(
                f"DATASETS.TEST: in {name} {file_name} has {whose}: give every image an id of its "
                "own, by which metrics tell them apart"
            )
        seen[image_id] = file_name


def _draw_seed(cfg: CfgNode, resume: bool) -> int:
    seed = None
    previous = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if resume and comm.is_main_process() and os.path.isfile(previous):
        seed = load_config(previous).SEED
    drawn = comm.shared_random_seed()
    # The main process decides: the others may see no such file, or one that is being written.
    found = comm.all_gather(seed)[0]
    return drawn if found is None else found
