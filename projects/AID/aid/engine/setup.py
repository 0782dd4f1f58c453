"""Setup of a run: config, early checks, output folder, logging."""

import argparse
import logging
import os
import shlex

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from ..checkpoint import clear_load_errors, last_checkpoint, load_file, local_file
from ..config import get_value, load_config
from ..data.classes import check_class_lists, class_list
from ..data.masks import check_masks
from ..data.plausibility import warn_of_boxes, warn_of_test_images
from ..data.register import register_from_file
from ..data.seeding import check_seed
from ..evaluation import check_evaluator
from ..modeling.families import num_classes_key
from ..utils.commands import script_path
from ..utils.errors import AIDError
from ..utils.malloc import keep_freed_memory
from ..utils.suggestions import did_you_mean
from ..utils.text import counted
from .errors import clear_run_errors
from .launch import num_cores
from .output_folder import check_output_folder, early_messages, start_records

__all__ = ["check_config_file", "check_dataset", "setup", "weights_to_evaluate"]


def setup(args: argparse.Namespace, output: str | None = None) -> CfgNode:
    """Build and check the config, and set up this process for the run.

    Starts logging, seeds the process, and sets cuDNN's benchmark mode and, for training on the CPU,
    the memory allocator (:mod:`aid.utils.malloc`).

    Args:
        args: of the command line of train_net.py.
        output: folder in place of OUTPUT_DIR.

    Returns:
        The frozen config, with SEED >= 0. :func:`~aid.engine.start_run` writes a SEED that was
        drawn to config.yaml in the output folder, from which a resumed run reads it.

    Raises:
        AIDError: see :func:`load_config` and :func:`check_dataset`; the datasets have different
            class lists, the device does not exist, a key has a value that would have no effect, or
            the output folder cannot be written or has a run of another model.
    """
    with early_messages() as early:
        cfg, sizes = _checked_config(args, output)
        # An evaluation must not overwrite the config.yaml of the training, which --resume reads.
        records = cfg.clone()
        if args.eval_only:
            records.defrost()
            records.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "inference")
        check_output_folder(records, resume=args.resume and not args.eval_only)
    start_records(records, args, early)
    _log_summary(records, args, sizes)
    if cfg.MODEL.DEVICE == "cpu" and not args.eval_only:
        keep_freed_memory()
    return cfg


def _log_summary(cfg: CfgNode, args: argparse.Namespace, sizes: dict[str, int]) -> None:
    """Log what a user wants to see of the run before its model is built."""
    log = logging.getLogger(__name__).info
    log("Config file %s%s", args.config_file, " with " * bool(args.opts) + shlex.join(args.opts))
    if not args.dry_run:
        log("Output folder %s; its log.txt has the environment and all keys", cfg.OUTPUT_DIR)
    device = cfg.MODEL.DEVICE
    if device.startswith("cuda"):
        device = f"{device} ({torch.cuda.get_device_name()})"
    log(
        "Device %s; processes: %d; loader workers of each process: %d; CPU cores here: %d",
        device,
        comm.get_world_size(),
        cfg.DATALOADER.NUM_WORKERS,
        num_cores(),
    )
    for key in _dataset_keys(args):
        names = [f"{name} ({counted(sizes[name], 'image')})" for name in cfg.DATASETS[key]]
        if names or key != "UNLABELED":
            log("DATASETS.%s: %s", key, ", ".join(names) or "none")
    if not args.eval_only:
        solver = cfg.SOLVER
        iterations = counted(solver.MAX_ITER, "iteration")
        log("%s of %s; SEED %d", iterations, counted(solver.IMS_PER_BATCH, "image"), cfg.SEED)


def _dataset_keys(args: argparse.Namespace) -> tuple[str, ...]:
    """Names of the keys of DATASETS that a run reads."""
    return ("TEST",) if args.eval_only else ("TRAIN", "UNLABELED", "TEST")


def _checked_config(args: argparse.Namespace, output: str | None) -> tuple[CfgNode, dict[str, int]]:
    """Run the files of ``--register``, and build and check the config; see :func:`setup`.

    Returns:
        The config, and the number of images of each dataset that is used.
    """
    for path in args.register:
        register_from_file(path)
    check_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts)
    cfg.OUTPUT_DIR = output or cfg.OUTPUT_DIR
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
            f"MODEL.DEVICE is cpu, but --num-gpus is {num_gpus}: choose one of the two; "
            "--num-processes starts several processes on the CPU"
        )
    if ":" in cfg.MODEL.DEVICE and comm.get_world_size() > 1:
        raise AIDError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE} is one GPU for several processes: write cuda"
        )
    in_half = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    if cfg.MODEL.DEVICE == "cpu" and in_half and not args.eval_only:
        raise AIDError(
            "SOLVER.AMP.ENABLED is on, but MODEL.DEVICE is cpu: mixed precision needs a GPU, or "
            "SOLVER.AMP.DTYPE bfloat16"
        )
    if cfg.TEST.AUG.ENABLED:
        raise AIDError(
            "TEST.AUG.ENABLED is on, but train_net.py evaluates without augmentation: turn it off"
        )
    if args.eval_only and not cfg.DATASETS.TEST:
        raise AIDError("--eval-only: DATASETS.TEST is empty: name the dataset to evaluate on")
    if args.eval_only:
        weights_to_evaluate(cfg, args.resume)
    elif not (args.resume and last_checkpoint(cfg.OUTPUT_DIR)):
        _check_weights(cfg.MODEL.WEIGHTS)
    sizes = {}
    for key in _dataset_keys(args):
        for name in cfg.DATASETS[key]:
            sizes[name] = check_dataset(cfg, key, name)
    check_class_lists((f"DATASETS.{k}", x) for k in ("TRAIN", "TEST") for x in cfg.DATASETS[k])
    if comm.is_main_process() and not args.eval_only:
        warn_of_test_images(cfg)
    if cfg.SEED < 0:
        cfg.SEED = _draw_seed(cfg, resume=args.resume)
    check_seed("SEED", cfg.SEED)
    with clear_run_errors(cfg):
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    cfg.freeze()
    return cfg, sizes


def weights_to_evaluate(cfg: CfgNode, resume: bool) -> str:
    """Path of the weights of ``--eval-only``: MODEL.WEIGHTS, or the last checkpoint of OUTPUT_DIR.

    Args:
        cfg: of the run.
        resume: whether to choose the last checkpoint of OUTPUT_DIR, if there is one.

    Raises:
        AIDError: neither exists, or the file cannot be read.
    """
    name = last_checkpoint(cfg.OUTPUT_DIR) if resume else ""
    path = os.path.join(cfg.OUTPUT_DIR, name) if name else cfg.MODEL.WEIGHTS
    if not path:
        raise AIDError("--eval-only needs weights: add MODEL.WEIGHTS PATH, or --resume")
    _check_weights(path)
    return path


def _check_weights(path: str) -> None:
    """Check that weights on this machine can be opened; "" are random ones."""
    if path and "://" not in path:
        with clear_load_errors("MODEL.WEIGHTS", path), open(local_file(path), "rb"):
            pass


def check_config_file(path: str) -> None:
    """Check that a config file is given and is not a LazyConfig.

    Raises:
        AIDError: the path is empty or ends in .py.
    """
    if not path:
        raise AIDError("--config-file is missing: choose one under configs/")
    if path.endswith(".py"):
        script = script_path("tools/lazyconfig_train_net.py")
        raise AIDError(f"{path} is a LazyConfig: train with {script}")


def check_dataset(cfg: CfgNode, key: str, name: str) -> int:
    """Load a dataset and check that it fits the config, to report errors before training starts.

    Args:
        cfg: of the run.
        key: "TRAIN", "UNLABELED" or "TEST".
        name: of the dataset, in DATASETS.TRAIN, UNLABELED or TEST.

    Returns:
        Number of its images.

    Raises:
        AIDError: the dataset is unknown, cannot be loaded, lacks sizes of images that are needed
            or, if unlabeled, has no image; its number of classes is not that of the model, it lacks
            masks for a model with masks, a training set has no objects, or a test set has no
            evaluator, no names of its classes or no unique image ids.
    """
    if name not in DatasetCatalog.list():
        known = ", ".join(n for n in DatasetCatalog.list() if "kitti" in n or "traffic" in n)
        raise AIDError(
            f"DATASETS.{key}: {name!r} is not registered{did_you_mean(name, DatasetCatalog.list())}"
            ": add --register FILE for a dataset of your own (docs/own_data.md); this project "
            f"registers {known}, Detectron2 its own"
        )
    try:
        records = DatasetCatalog.get(name)
    except OSError as error:  # of Detectron2's own datasets
        raise AIDError(
            f"DATASETS.{key}: {name} cannot be loaded ({error}): check DETECTRON2_DATASETS"
        ) from error
    _check_sizes(cfg, key, name, records)
    if key == "UNLABELED":
        if not records:
            raise AIDError(f"DATASETS.UNLABELED: {name} has no image")
        return len(records)
    classes_key = num_classes_key(cfg)
    names = class_list(name)
    if classes_key and names is not None and len(names) != get_value(cfg, classes_key):
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise AIDError(
            f"{classes_key} is {get_value(cfg, classes_key)}, but DATASETS.{key} {name} "
            f"has {counted(len(names), 'class')} ({listed}): set it to {len(names)}"
        )
    if key == "TEST":
        check_evaluator(name)
        if names is None and _is_converted(name):
            raise AIDError(
                f"DATASETS.TEST: the names of the classes of {name} are not known, which COCO's "
                "metric needs: set thing_classes in its metadata, or name a dataset with labels"
            )
        _check_image_ids(records, name)
    _check_objects(records, key, name)
    if comm.is_main_process():
        warn_of_boxes(f"DATASETS.{key}: {name}", records)
    if cfg.MODEL.MASK_ON:
        check_masks(cfg, key, name, records)
    return len(records)


def _check_sizes(cfg: CfgNode, key: str, name: str, records: list[dict]) -> None:
    """Check that records have sizes if a training groups by them or COCO's metric converts them."""
    if not (_is_converted(name) if key == "TEST" else cfg.DATALOADER.ASPECT_RATIO_GROUPING):
        return
    for record in records:
        if not {"width", "height"} <= record.keys():
            raise AIDError(
                f"DATASETS.{key}: in {name} {record['file_name']} has no width and height: add "
                "both, in pixels, to the record of each image"
            )


def _is_converted(name: str) -> bool:
    """Whether COCO's metric converts the records of a dataset, since there is no file of them."""
    return MetadataCatalog.get(name).get("json_file", None) is None


def _check_objects(records: list[dict], key: str, name: str) -> None:
    """Refuse a training set without objects; warn of a test set without any."""
    if not all(x.get("iscrowd", 0) for record in records for x in record.get("annotations", ())):
        return
    images = counted(len(records), "image")
    remedy = (
        "check its labels, where only objects of the classes count that are no crowds or "
        "ignored regions"
    )
    if key == "TRAIN":
        raise AIDError(f"DATASETS.TRAIN: {name} has no object to train on in {images}: {remedy}")
    if comm.is_main_process() and _is_labeled(name):
        logging.getLogger(__name__).warning(
            "DATASETS.TEST: %s has no object in %s, and every AP will be NaN: %s",
            name,
            images,
            remedy,
        )


def _is_labeled(name: str) -> bool:
    """Whether a test set has labels; KITTI's own has none."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type", None) != "kitti" or metadata.kitti_labels is not None


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
    seed = _previous_seed(cfg.OUTPUT_DIR) if resume and comm.is_main_process() else None
    drawn = comm.shared_random_seed()
    # The main process decides: others may see no file, or an incomplete one.
    previous_seed = comm.all_gather(seed)[0]
    return drawn if previous_seed is None else previous_seed


def _previous_seed(folder: str) -> int | None:
    """Seed of the run in an output folder, from its config.yaml or else its last checkpoint."""
    path = os.path.join(folder, "config.yaml")
    if os.path.isfile(path) and (seed := load_config(path).SEED) >= 0:
        return seed
    name = last_checkpoint(folder)
    if not name:
        return None
    path = os.path.join(folder, name)
    with clear_load_errors("--resume:", path):
        trainer = load_file(path).get("trainer", {})
        return trainer.get("conditions", {}).get("SEED")
