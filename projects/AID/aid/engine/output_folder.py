"""The output folder of a run: what lies there is looked at before anything is written."""

import json
import logging
import os
import tempfile
from argparse import Namespace

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..config import load_config
from ..utils.errors import AIDError
from ..utils.files import clear_write_errors, remove_parts, whole_file

__all__ = ["check_output_folder", "flat_keys", "start_records", "write_results"]

# What the weights and the optimizer of a checkpoint belong to.
DISTILLATION = (
    "DISTILLATION.LOSSES",
    "DISTILLATION.LEVELS",
    "DISTILLATION.ADAPT_EQUAL_WIDTHS",
    "DISTILLATION.NON_LOCAL.TRAIN_TEACHER",
    "AID.WEIGHTING",
)
MORE_TEACHERS = "the length of TEACHER.MORE_CONFIG_FILES"
STATE = ("MODEL.", "SOLVER.OPTIMIZER", *DISTILLATION, MORE_TEACHERS)
# Of these, what may change between a run and its resumption, as may keys of tests.
PASSING = ("MODEL.DEVICE", "MODEL.WEIGHTS")


def check_output_folder(cfg: CfgNode, resume: bool) -> None:
    """Make the folder, and look whether this run may write there. Nothing in it is changed.

    Args:
        cfg: of a training.
        resume: whether the run goes on from a checkpoint, if one is there.

    Raises:
        AIDError: the folder cannot be written, or the run to go on with has another model.
    """
    folder = cfg.OUTPUT_DIR
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # whose rights are told by trying alone
            pass
    except OSError as error:
        raise AIDError(f"OUTPUT_DIR {folder} cannot be written: {error.strerror}") from error
    # The main process alone: to the others its new config.yaml may look like the old one.
    if comm.is_main_process() and resume and _has_checkpoint(folder):
        changed = _changed_keys(cfg)
        if changed:
            raise AIDError(
                f"--resume: the run in OUTPUT_DIR {folder} has another model or optimizer: "
                f"{'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''}: choose another "
                "OUTPUT_DIR, or leave these keys as they were"
            )


def start_records(cfg: CfgNode, args: Namespace) -> None:
    """Start the log, write config.yaml, seed the process.

    In place of Detectron2's ``default_setup``, which empties config.yaml before it writes it: a
    process that dies then, or a full disk, would take the seed of the run with it.

    Args:
        cfg: its OUTPUT_DIR exists.
        args: of the command line.

    Raises:
        AIDError: the folder cannot be written.
    """
    folder, rank = cfg.OUTPUT_DIR, comm.get_rank()
    with clear_write_errors(folder):
        for name in ("fvcore", "detectron2", "aid"):
            setup_logger(folder, distributed_rank=rank, name=name)
        logger = logging.getLogger(__name__)
        logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
        logger.info("Environment info:\n%s", collect_env_info())
        logger.info("Command line arguments: %s", args)
        logger.info("Running with full config:\n%s", cfg.dump())
        if comm.is_main_process():
            if not args.eval_only:
                _tidy(folder, args.resume)
            with whole_file(os.path.join(folder, "config.yaml")) as f:
                f.write(cfg.dump().encode())
    seed_all_rng(cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def write_results(folder: str, results: dict) -> None:
    """Write what an evaluation outside of the training found to ``folder``'s metrics.json.

    Args:
        folder: it exists.
        results: of :meth:`DefaultTrainer.test`.
    """
    with whole_file(os.path.join(folder, "metrics.json")) as f:
        content = {**flatten_results_dict(results), "iteration": 0}
        f.write(json.dumps(content, sort_keys=True).encode() + b"\n")


def _has_checkpoint(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "last_checkpoint"))


def _changed_keys(cfg: CfgNode) -> list[str]:
    """Keys that differ from the folder's config.yaml and do not go with its checkpoints.

    The architecture, from which other differences follow, comes first.
    """
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not os.path.isfile(path):  # the weights are looked at when they are loaded
        return []
    # Dumped, so that lists and tuples are the same.
    before, now = (_state(x) for x in (load_config(path), cfg))
    keys = sorted(before.keys() | now.keys(), key=lambda x: (x != "MODEL.META_ARCHITECTURE", x))
    return [
        f"{key} is {before.get(key)} there, {now.get(key)} here"
        for key in keys
        if key.startswith(STATE) and key not in PASSING and not key.endswith("_TEST")
        if before.get(key) != now.get(key)
    ]


def _state(cfg: CfgNode) -> dict[str, object]:
    """Keys and values, with the number of further teachers, of whom each has adapters.

    Their files may have moved, as the first one's may.
    """
    state = flat_keys(yaml.safe_load(cfg.dump()))
    return {**state, MORE_TEACHERS: len(cfg.TEACHER.MORE_CONFIG_FILES)}


def flat_keys(node: dict, prefix: str = "") -> dict[str, object]:
    """Nested keys and their values, as {"SOLVER.MAX_ITER": 90000}."""
    flat = {}
    for key, value in node.items():
        nested = isinstance(value, dict)
        flat |= flat_keys(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _tidy(folder: str, resume: bool) -> None:
    """Remove what killed runs left unfinished, and say whose checkpoints will be overwritten."""
    remove_parts(folder, "*.pth", "last_checkpoint", "config.yaml")
    _end_line(os.path.join(folder, "metrics.json"))
    earlier = sorted(name for name in os.listdir(folder) if name.endswith(".pth"))
    if earlier and not (resume and _has_checkpoint(folder)):
        logging.getLogger(__name__).warning(
            "OUTPUT_DIR %s holds checkpoints of an earlier run (%s): this one starts afresh and "
            "will overwrite them; to keep them stop it, and choose another OUTPUT_DIR, or add "
            "--resume to go on from the last",
            folder,
            ", ".join(earlier[:3]) + (", ..." if len(earlier) > 3 else ""),
        )


def _end_line(path: str) -> None:
    """Drop the line that a process began and did not end: the next would be written behind it."""
    if os.path.isfile(path):
        with open(path, "rb+") as f:
            f.truncate(f.read().rfind(b"\n") + 1)
