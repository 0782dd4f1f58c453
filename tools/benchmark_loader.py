#!/usr/bin/env python3
"""Measure the throughput of the training loader for several numbers of workers.

    python tools/benchmark_loader.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml

The loader reads DATASETS.TRAIN with the config's augmentation; no checkpoints are needed. See
docs/performance.md for the number of GPUs at which a loader becomes the bottleneck.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import (
    add_config_file,
    add_json,
    add_overrides,
    add_register,
    make_parser,
)
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config_file(parser, "config of a training")
    add(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 1, 2, 4],
        metavar="N",
        help="numbers of loader processes to measure (default: 0 1 2 4)",
    )
    add(
        "--batches",
        type=int,
        default=50,
        metavar="N",
        help="number of timed batches (default: %(default)s)",
    )
    add_register(parser)
    add_json(parser)
    add_overrides(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from tabulate import tabulate

    from aid.config import load_config
    from aid.data.register import register_from_file
    from aid.engine.setup import check_dataset
    from aid.utils.text import counted
    from aid_tools.benchmark.loader import measure_loader
    from aid_tools.files import write_json

    if args.register:
        register_from_file(args.register)
    cfg = load_config(args.config_file, args.opts)
    cfg.SEED = max(cfg.SEED, 0)
    for name in cfg.DATASETS.TRAIN:
        check_dataset(cfg, "TRAIN", name)
    rates = measure_loader(cfg, args.workers, args.batches)
    rows = [[n, rate, rate / max(1, n)] for n, rate in rates.items()]
    print(
        f"{', '.join(cfg.DATASETS.TRAIN)} with {args.config_file}; "
        f"batches: {args.batches} of {counted(cfg.SOLVER.IMS_PER_BATCH, 'image')}; "
        f"{counted(len(os.sched_getaffinity(0)), 'core')}"
    )
    print(tabulate(rows, ["workers", "images / s", "per worker"], floatfmt=".1f"))
    if args.json:
        write_json(
            args.json, {"images_per_second": rates, "cores": len(os.sched_getaffinity(0))}, "--json"
        )


if __name__ == "__main__":
    main()
