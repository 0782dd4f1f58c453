"""The command line of a training."""

import argparse

from detectron2.engine.launch import DEFAULT_TIMEOUT

__all__ = ["argument_parser"]

DESCRIPTION = (
    "Train or evaluate a detector: a teacher, a plain student, or a student with its teacher."
)
EXAMPLES = """
examples:
  A student with its teacher on 4 GPUs; --resume goes on where a run was interrupted, if it was:
    %(prog)s --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --num-gpus 4 --resume

  What would that take, and does everything fit?
    %(prog)s --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --num-gpus 4 --dry-run

  On the CPU, with other values for two keys:
    %(prog)s --config-file configs/Quickstart/faster_rcnn_R18_FPN.yaml --num-gpus 0 \\
        SOLVER.MAX_ITER 400 OUTPUT_DIR output/longer

  Evaluate a checkpoint; the plain student's config does, no teacher is needed:
    %(prog)s --config-file configs/KITTI/faster_rcnn_R18_FPN.yaml --eval-only \\
        MODEL.WEIGHTS output/AID/faster_rcnn_R18_from_R101/model_final.pth

  On two machines, the second with --machine-rank 1:
    %(prog)s --config-file FILE --num-gpus 4 --num-machines 2 --machine-rank 0 \\
        --dist-url tcp://first:29500

  Under torchrun, which says itself how many processes there are:
    torchrun --nproc-per-node 4 %(prog)s --config-file FILE

All keys: docs/configs.md. Several machines and Slurm: docs/cluster.md.
"""


def argument_parser() -> argparse.ArgumentParser:
    """A parser with Detectron2's options and this project's, in groups.

    ``num_gpus`` is None unless given, for 1; ``dist_url`` "auto", for a free port of this machine.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s --config-file FILE [options] [KEY VALUE ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to run").add_argument
    add("--config-file", default="", metavar="FILE", help="the config, of those under configs/")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override keys of the config")
    add(
        "--register",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file that registers your own datasets, losses or rules, run first; may be "
        "given several times",
    )

    add = parser.add_argument_group("how").add_argument
    add(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, without a teacher")
    add(
        "--dry-run",
        action="store_true",
        help="build everything, train for two iterations and evaluate four images; say what the "
        "whole run will take, and leave OUTPUT_DIR as it is",
    )

    add = parser.add_argument_group("processes").add_argument
    add(
        "--num-gpus",
        type=int,
        metavar="N",
        help="GPUs of each machine, one process on each; default 1; 0 for the CPU",
    )
    add("--num-processes", type=int, metavar="N", help="processes of each machine on the CPU")
    add("--num-machines", type=int, default=1, metavar="N", help="default %(default)s")
    add(
        "--machine-rank",
        type=int,
        default=0,
        metavar="N",
        help="which of them this is, counted from 0",
    )
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="tcp://HOST:PORT where several machines meet: a free port of the first",
    )
    add(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT.total_seconds() / 60,
        metavar="MINUTES",
        help="how long a process waits for the others before it gives up; default %(default)g",
    )
    return parser
