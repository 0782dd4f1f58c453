#!/usr/bin/env python3
"""Measure how many images a second the training loader gives, by its number of workers.

    python tools/benchmark_loader.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml

Reads DATASETS.TRAIN with the config's augmentation; needs no weights. docs/performance.md says at
which number of GPUs a loader becomes the limit.
"""

import argparse
import json
import os

from tabulate import tabulate

import aid  # noqa: F401  (registers datasets)
from aid.config import load_config
from aid.data.register import register_from_file
from aid.engine.setup import check_dataset
from aid.utils.errors import main_with_clear_errors
from aid_tools.benchmark.loader import measure_loader


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.register:
        register_from_file(args.register)
    cfg = load_config(args.config_file, args.opts)
    cfg.SEED = max(cfg.SEED, 0)
    for name in cfg.DATASETS.TRAIN:
        check_dataset(cfg, "TRAIN", name)
    found = measure_loader(cfg, args.workers, args.batches)
    rows = [[n, rate, rate / max(1, n)] for n, rate in found.items()]
    print(
        f"{', '.join(cfg.DATASETS.TRAIN)} as {args.config_file} reads it; "
        f"{args.batches} batches of {cfg.SOLVER.IMS_PER_BATCH}; {os.cpu_count()} cores"
    )
    print(tabulate(rows, ["workers", "images / s", "a worker"], floatfmt=".1f"))
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"images_per_second": found, "cores": os.cpu_count()}, f, indent=1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--config-file", required=True, metavar="FILE", help="of a training")
    add(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 1, 2, 4],
        metavar="N",
        help="numbers of loader processes (default: %(default)s)",
    )
    add("--batches", type=int, default=50, metavar="N", help="that count (default: %(default)s)")
    add("--register", metavar="FILE", help="Python file that registers your own datasets")
    add("--json", metavar="FILE", help="write the numbers there")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return made


if __name__ == "__main__":
    main()
