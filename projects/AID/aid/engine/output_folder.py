"""Output folder of a run: checks before anything is written, logs and results."""

import logging
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..config import flat_keys, load_config
from ..utils.errors import AIDError
from ..utils.files import (
    check_folder_name,
    clear_write_errors,
    json_text,
    lock_folder,
    remove_parts,
    write_text,
)
from ..utils.logs import Screen, log_to_file

__all__ = [
    "check_output_folder",
    "early_messages",
    "start_records",
    "start_run",
    "write_results",
]

# Loggers with their own handlers. That of YACS warns of keys that are ignored.
LOGGERS = ("fvcore", "detectron2", "yacs", "aid")

# Keys that must not change when a run is resumed: they determine the weights and the optimizer in
# its checkpoints. Names with a dot at the end stand for sections, without keys that end in _TEST.
DISTILLATION = (
    "DISTILLATION.LOSSES",
    "DISTILLATION.LEVELS",
    "DISTILLATION.ADAPT_EQUAL_WIDTHS",
    "DISTILLATION.NON_LOCAL.TRAIN_TEACHER",
    "AID.WEIGHTING",
)
MORE_TEACHERS = "the length of TEACHER.MORE_CONFIG_FILES"
STATE = ("MODEL.", "MODEL_EMA.ENABLED", "SOLVER.OPTIMIZER", *DISTILLATION, MORE_TEACHERS)
# Keys that may change, without a warning.
MAY_CHANGE = (
    # Where a run computes, and how often it writes.
    *("OUTPUT_DIR", "MODEL.DEVICE", "TEACHER.DEVICE", "DATALOADER.NUM_WORKERS", "CUDNN_BENCHMARK"),
    *("TEACHER.CACHE", "TEACHER.CACHE_GIB"),
    *("VIS_PERIOD", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
    # Read at the start of a new run only.
    *("MODEL.WEIGHTS", "TEACHER.INHERIT", "TEACHER.EVAL_FIRST", "TEACHER.COMPARE_BATCHES"),
    "SOLVER.MAX_ITER",  # raised to train longer
    "SEED",  # compared with that of the checkpoint, when it is loaded
)


def check_output_folder(cfg: CfgNode, resume: bool) -> None:
    """Create the output folder if missing, and check that this run may write to it.

    Files in the folder are not changed. A warning lists the keys that differ from those of the run
    to resume, unless they may change.

    Args:
        cfg: of the run.
        resume: whether the run continues from the checkpoint in the folder, if there is one.

    Raises:
        AIDError: the folder cannot be written, or the run to resume has another model.
    """
    folder = cfg.OUTPUT_DIR
    check_folder_name("OUTPUT_DIR", folder)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # permissions alone are not reliable
            pass
    except OSError as error:
        raise AIDError(f"OUTPUT_DIR {folder} cannot be written: {error.strerror}") from error
    # Main process only: the others may read the config.yaml that it is about to write.
    if comm.is_main_process() and resume and _has_checkpoint(folder):
        changed = _changed_keys(cfg)
        refused = [
            f"{key} is {before} there, {now} here"
            for key, (before, now) in changed.items()
            if key.startswith(STATE) and not key.endswith("_TEST")
        ]
        if refused:
            raise AIDError(
                f"--resume: the run in OUTPUT_DIR {folder} has another model or optimizer: "
                f"{'; '.join(refused[:3])}{'; ...' if len(refused) > 3 else ''}: choose another "
                "OUTPUT_DIR, or leave these keys as they were"
            )
        if changed:
            logging.getLogger(__name__).warning(
                "--resume: from here on keys of the run differ from those before it stopped: %s; "
                "to go on as before, leave them as they were",
                "; ".join(f"{key} {before!r} -> {now!r}" for key, (before, now) in changed.items()),
            )


@contextmanager
def early_messages() -> Iterator[list[logging.LogRecord]]:
    """Collect log messages inside the context, before log.txt is open, for :func:`start_records`.

    If an error occurs inside the context, they are printed to stderr.

    Yields:
        List to which the messages are appended.
    """
    held = MemoryHandler(capacity=1)  # unlimited, since it has no target
    loggers = list(map(logging.getLogger, LOGGERS))
    for logger in loggers:
        logger.addHandler(held)
    try:
        yield held.buffer
    except BaseException:
        held.setTarget(logging.lastResort)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(held)
        held.close()


def start_records(cfg: CfgNode, args: Namespace, early: Iterable[logging.LogRecord] = ()) -> None:
    """Set up logging and seed the process, in place of Detectron2's ``default_setup``.

    The environment and the config are in log.txt only, and so are most messages of Detectron2, see
    :class:`~aid.utils.logs.Screen`. config.yaml of a training is written later, by
    :func:`start_run`.

    Args:
        cfg: of the run; its OUTPUT_DIR exists.
        args: of the command line.
        early: messages of :func:`early_messages`, to be logged first, each once.

    Raises:
        AIDError: the folder cannot be written.
    """
    folder, rank = cfg.OUTPUT_DIR, comm.get_rank()
    with clear_write_errors(folder):
        before = [x for name in LOGGERS for x in logging.getLogger(name).handlers]
        screen = Screen(results=not getattr(args, "dry_run", False))
        for name in LOGGERS:
            setup_logger(folder, distributed_rank=rank, name=name)
            for handler in logging.getLogger(name).handlers:
                if handler not in before and handler.stream is sys.stdout:
                    handler.addFilter(screen)
        # Each once: several files that are read may have one and the same key that is ignored.
        for message in {x.getMessage(): x for x in early}.values():
            for handler in logging.getLogger(message.name.split(".")[0]).handlers:
                if handler not in before:  # which have processed the message already
                    handler.handle(message)
        world_size = comm.get_world_size()
        log_to_file(logging.INFO, "Rank of current process: %d. World size: %d", rank, world_size)
        log_to_file(logging.INFO, "Environment info:\n%s", collect_env_info())
        log_to_file(logging.INFO, "Command line arguments: %s", args)
        log_to_file(logging.INFO, "Running with full config:\n%s", cfg.dump())
        if args.eval_only:
            _write_config(cfg)
    seed_all_rng(cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def start_run(cfg: CfgNode, resume: bool) -> None:
    """Clean up the output folder and write config.yaml, when all that a training needs is built.

    A run that fails before leaves the files of an earlier one as they are. The file is written
    whole: Detectron2 truncates it before, so that a killed process loses the seed of the run.

    Args:
        cfg: of the run; its OUTPUT_DIR exists.
        resume: whether the run continues from the checkpoint in the folder, if there is one.

    Raises:
        AIDError: the folder cannot be written, or another run is using it.
    """
    if comm.is_main_process():
        lock_folder(cfg.OUTPUT_DIR)
        with clear_write_errors(cfg.OUTPUT_DIR):
            _clean_up(cfg.OUTPUT_DIR, resume)
    _write_config(cfg)


def _write_config(cfg: CfgNode) -> None:
    if comm.is_main_process():
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with clear_write_errors(cfg.OUTPUT_DIR):
            write_text(path, cfg.dump())


def write_results(folder: str, results: dict) -> None:
    """Write the results of an evaluation outside of the training loop to metrics.json.

    NaN, COCO's AP of a class without objects, becomes null.

    Args:
        folder: existing folder of the file.
        results: of :meth:`DefaultTrainer.test`.

    Raises:
        AIDError: the file cannot be written.
    """
    path = os.path.join(folder, "metrics.json")
    content = {**flatten_results_dict(results), "iteration": 0}
    with clear_write_errors(folder):
        write_text(path, json_text(content, sort_keys=True) + "\n")
    logging.getLogger(__name__).info("Results: %s", path)


def _has_checkpoint(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "last_checkpoint"))


def _changed_keys(cfg: CfgNode) -> dict[str, tuple[object, object]]:
    """Find the keys, except MAY_CHANGE, that differ from the config.yaml of the run to resume.

    The architecture comes first, as other differences follow from it.

    Returns:
        {key: (value there, value here)}
    """
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not os.path.isfile(path):  # the weights are checked when they are loaded
        return {}
    # Dumped, so that lists and tuples compare equal.
    before, now = (_state(x) for x in (load_config(path), cfg))
    keys = sorted(before.keys() | now.keys(), key=lambda x: (x != "MODEL.META_ARCHITECTURE", x))
    return {
        key: (before.get(key), now.get(key))
        for key in keys
        if key not in MAY_CHANGE and before.get(key) != now.get(key)
    }


def _state(cfg: CfgNode) -> dict[str, object]:
    """Flatten a config, and add the number of further teachers, each of which has adapters.

    The paths of the teachers may change.
    """
    state = flat_keys(yaml.safe_load(cfg.dump()))
    return {**state, MORE_TEACHERS: len(cfg.TEACHER.MORE_CONFIG_FILES)}


def _clean_up(folder: str, resume: bool) -> None:
    """Remove incomplete files of killed runs; warn if checkpoints will be overwritten."""
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
    """Remove an incomplete last line, so that the next line is not appended to it."""
    if os.path.isfile(path):
        with open(path, "rb+") as f:
            f.truncate(f.read().rfind(b"\n") + 1)
