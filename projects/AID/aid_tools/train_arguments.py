"""Command line of train_net.py. Imports the standard library only, see :mod:`aid_tools.command`."""

import argparse

__all__ = ["add_process_options", "argument_parser"]

# Detectron2's default of --timeout, in minutes.
TIMEOUT = 30.0
DESCRIPTION = (
    "Train or evaluate a detector: a teacher, a plain student, or a student with its teacher."
)
EXAMPLES = """
examples:
  A student with its teacher on 4 GPUs; --resume continues an interrupted run, if there is one:
    %(prog)s --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --num-gpus 4 --resume

  Estimate the time and memory of that run:
    %(prog)s --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --num-gpus 4 --dry-run

  On the CPU, with other values for two keys:
    %(prog)s --config-file configs/Quickstart/faster_rcnn_R18_FPN.yaml --num-gpus 0 \\
        SOLVER.MAX_ITER 400 OUTPUT_DIR output/longer

  Evaluate a checkpoint; this needs no teacher, so the plain student's config will do:
    %(prog)s --config-file configs/KITTI/faster_rcnn_R18_FPN.yaml --eval-only \\
        MODEL.WEIGHTS output/AID/faster_rcnn_R18_from_R101/model_final.pth

  On two machines, the second with --machine-rank 1:
    %(prog)s --config-file FILE --num-gpus 4 --num-machines 2 --machine-rank 0 \\
        --dist-url tcp://first:29500

  With torchrun, which sets the number of processes:
    torchrun --nproc-per-node 4 %(prog)s --config-file FILE

All keys: docs/configs.md. Several machines and Slurm: docs/cluster.md.
"""


def argument_parser() -> argparse.ArgumentParser:
    """Create a parser with the options of Detectron2 and of this project.

    ``num_gpus`` is None by default, which stands for 1; ``dist_url`` is "auto", which stands for a
    free port of this machine.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s --config-file FILE [options] [KEY VALUE ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to run").add_argument
    add("--config-file", required=True, metavar="FILE", help="config file, such as in configs/")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override keys of the config")
    add(
        "--register",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file that registers your own datasets, losses or rules; may be given several "
        "times",
    )

    add = parser.add_argument_group("how").add_argument
    add(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, without a teacher")
    add(
        "--dry-run",
        action="store_true",
        help="train for two iterations, evaluate four images and print the time, memory and disk "
        "space of the whole run, without changing OUTPUT_DIR",
    )

    add_process_options(parser)
    return parser


def add_process_options(parser: argparse.ArgumentParser, on_cpu: bool = True) -> None:
    """Add the options of :func:`aid.engine.launch`; see :func:`argument_parser`.

    Args:
        parser: to which they are added.
        on_cpu: whether to offer several processes on the CPU.
    """
    add = parser.add_argument_group("processes").add_argument
    add(
        "--num-gpus",
        type=int,
        metavar="N",
        help="GPUs per machine, one process each; default 1; 0 for the CPU",
    )
    if on_cpu:
        add("--num-processes", type=int, metavar="N", help="processes per machine on the CPU")
    parser.set_defaults(num_processes=None)
    add(
        "--num-machines",
        type=int,
        default=1,
        metavar="N",
        help="number of machines; default %(default)s",
    )
    add(
        "--machine-rank",
        type=int,
        default=0,
        metavar="N",
        help="index of this machine, counted from 0",
    )
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="tcp://HOST:PORT with a free port of the first machine; for several machines",
    )
    add(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="MINUTES",
        help="longest time that a process waits for the others; default %(default)g",
    )
