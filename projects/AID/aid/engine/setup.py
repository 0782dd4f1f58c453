"""From command-line arguments to a frozen config and a working output folder."""

import argparse
import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm

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
        AIDError: see :func:`load_config`; an unknown dataset; a device that is not there.
    """
    if not args.config_file:
        raise AIDError("--config-file is missing: choose one under configs/")
    cfg = load_config(args.config_file, args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog.list():
                known = ", ".join(n for n in DatasetCatalog.list() if "kitti" in n)
                raise AIDError(
                    f"DATASETS.{key}: {name!r} is not registered; this project registers {known}, "
                    "Detectron2 its own, and docs/getting_started.md shows how to add yours"
                )
    if cfg.SEED < 0:
        cfg.SEED = _draw_seed(cfg, resume=args.resume)
    cfg.freeze()
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise AIDError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written: {error.strerror}"
        ) from error
    default_setup(cfg, args)
    return cfg


def _draw_seed(cfg: CfgNode, resume: bool) -> int:
    previous = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if resume and os.path.isfile(previous):
        return load_config(previous).SEED
    return comm.shared_random_seed()
