"""Launch of the processes of a run, by Detectron2 or torchrun."""

import logging
import multiprocessing
import os
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta

import detectron2.engine
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..config import load_config
from ..utils.d2 import end_with_parent
from ..utils.errors import AIDError, error_line, ignore_known_deprecations, no_file
from ..utils.logs import log_to_file
from ..utils.text import counted
from .errors import clear_connection_errors, not_joined

__all__ = ["launch", "num_cores"]

# Largest --timeout, in minutes.
YEAR = 525600
# Environment variables that torchrun sets.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN_NUMBERS = tuple(name for name in TORCHRUN if name != "MASTER_ADDR")
# What --dist-url may be, besides "auto".
URL = re.compile(r"tcp://[^/\s]+:(\d{1,5})|file:///\S+")


def launch(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Run ``main(args)`` in every process of the run, on NCCL with GPUs and on gloo without.

    Starts the processes by Detectron2, unless torchrun has started them.

    Args:
        main: function at the top level of a module. On the CPU its ``args.num_gpus`` is 0.
        args: of the command line of train_net.py.

    Raises:
        AIDError: the options do not fit each other or the machine, a process raised an AIDError, or
            a process was killed.
    """
    if not 0 < args.timeout <= YEAR:  # neither is NaN
        raise AIDError(
            f"--timeout is {args.timeout:g}: give a number of minutes above 0, and {YEAR} at most"
        )
    try:
        if "LOCAL_RANK" in os.environ:
            with clear_connection_errors():
                _join(args)
            _run(main, args)
        else:
            _start(main, args)
    except KeyboardInterrupt:
        is_training = not (args.eval_only or getattr(args, "dry_run", False))
        how = ": the same command with --resume goes on from the last checkpoint, if there is one"
        raise KeyboardInterrupt(f"interrupted{how if is_training else ''}") from None


def _run(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Run ``main`` in a process that has joined the group."""
    if multiprocessing.parent_process() is not None:
        # torch chose SIGINT, which processes that a shell starts in the background ignore.
        end_with_parent(signal.SIGTERM)
    ignore_known_deprecations()
    try:
        with clear_connection_errors():
            # On GPUs Detectron2 gathers by gloo, and connects on first use. Connected now, a
            # process notices immediately if another one ends, even during set-up.
            comm.all_gather(None)
            try:
                main(args)
            except IsADirectoryError as error:
                raise no_file(error) from error
            if dist.is_initialized():
                dist.destroy_process_group()
    except AIDError as error:  # main_with_clear_errors prints it
        log_to_file(logging.ERROR, "%s", error_line(error))
        raise


def _join(args: Namespace) -> None:
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise AIDError(
            f"LOCAL_RANK is set, as by torchrun, but not {', '.join(missing)}: start with "
            "torchrun, or unset LOCAL_RANK"
        )
    if args.num_gpus or args.num_processes is not None or args.num_machines > 1:
        raise AIDError(
            "torchrun says how many processes there are (--nnodes, --nproc-per-node): leave out "
            "--num-gpus, --num-processes and --num-machines; --num-gpus 0 means the CPU"
        )
    _, world_size, local_rank, local_size, _ = map(_number, TORCHRUN_NUMBERS)
    if world_size % local_size:
        raise AIDError(
            f"torchrun started {local_size} of {world_size} processes here: start as many on every "
            "machine"
        )
    on_cpu = args.num_gpus == 0 or (
        not args.config_file.endswith(".py")  # a LazyConfig
        and load_config(args.config_file, args.opts).MODEL.DEVICE == "cpu"
    )
    if not on_cpu:
        _check_gpus(f"--nproc-per-node {local_size}", local_size)
        torch.cuda.set_device(local_rank)
    args.num_gpus = 0 if on_cpu else local_size
    dist.init_process_group("gloo" if on_cpu else "nccl", timeout=timedelta(minutes=args.timeout))
    comm.create_local_process_group(local_size)
    comm.synchronize()


def _number(name: str) -> int:
    """Value of an environment variable that torchrun sets."""
    value = os.environ[name]
    least = 1 if name.endswith(("SIZE", "PORT")) else 0
    if not (value.isascii() and value.isdigit() and least <= int(value) < 2**16):
        raise AIDError(
            f"the environment variable {name} is {value!r}, where torchrun sets a whole number "
            f"from {least} on: start with torchrun, or unset LOCAL_RANK"
        )
    return int(value)


def _start(main: Callable[[Namespace], object], args: Namespace) -> None:
    _check_options(args)
    if args.num_processes is not None:
        args.num_gpus = 0
        # Detectron2 chooses gloo if no GPU is visible.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        threads = num_cores() // args.num_processes
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
    elif args.num_gpus is None:
        args.num_gpus = 1
    # Hides torch's log of the terminated processes, which the error below reports.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        detectron2.engine.launch(
            _run,
            args.num_processes or max(1, args.num_gpus),
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
            timeout=timedelta(minutes=args.timeout),
        )
    except ProcessRaisedException as error:
        _raise_as_here(str(error).strip())
    except ProcessExitedException as error:
        how = error.signal_name or f"exit code {error.exit_code}"
        raise AIDError(
            f"process {error.error_index} of this machine ended by {how}, and the others were "
            "stopped (SIGKILL often means that memory ran out); --resume goes on from the last "
            "checkpoint"
        ) from None


def num_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _check_options(args: Namespace) -> None:
    gpus, processes, machines = args.num_gpus, args.num_processes, args.num_machines
    for wrong, message in (
        (
            gpus and processes is not None,
            "--num-gpus starts processes on GPUs, --num-processes on the CPU: choose one of the "
            "two",
        ),
        (
            machines < 1 or (processes is not None and processes < 1) or (gpus or 0) < 0,
            "--num-machines and --num-processes must be 1 or more, --num-gpus 0 or more",
        ),
        (
            gpus == 0 and processes is None and machines > 1,
            f"--num-machines {machines} with --num-gpus 0: add --num-processes, the number of "
            "processes of each machine",
        ),
        (
            not 0 <= args.machine_rank < machines,
            f"--machine-rank {args.machine_rank}: with --num-machines {machines} machines are "
            f"numbered from 0 to {machines - 1}",
        ),
        (
            args.dist_url == "auto" and machines > 1,
            f"--num-machines {machines} needs --dist-url tcp://HOST:PORT, a free port of machine 0",
        ),
        (
            args.dist_url != "auto" and not _is_url(args.dist_url),
            f"--dist-url {args.dist_url}: write tcp://HOST:PORT, with a free port of machine 0",
        ),
    ):
        if wrong:
            raise AIDError(message)
    if (gpus or 0) > 1:
        _check_gpus(f"--num-gpus {gpus}", gpus)


def _is_url(text: str) -> bool:
    match = URL.fullmatch(text)
    return match is not None and (match[1] is None or 0 < int(match[1]) < 2**16)


def _check_gpus(option: str, number: int) -> None:
    available = torch.cuda.device_count()
    if number > available:
        raise AIDError(
            f"{option}: torch finds {counted(available, 'GPU')} here; --num-gpus 0 runs on the "
            "CPU, in several processes with --num-processes or torchrun"
        )


def _raise_as_here(traceback: str) -> None:
    """Raise the AIDError that a process raised; print the traceback of other errors and exit."""
    kind, _, message = traceback.splitlines()[-1].partition(": ")
    if kind == f"{AIDError.__module__}.{AIDError.__qualname__}":
        raise AIDError(message)
    if kind.startswith("torch.distributed.Dist"):  # while Detectron2 joined the processes
        raise not_joined(message)
    if kind == BrokenPipeError.__name__:  # which main_with_clear_errors handles
        raise BrokenPipeError
    print(traceback, file=sys.stderr)
    sys.exit(1)
