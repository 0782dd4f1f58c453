#!/usr/bin/env python3
"""Measure what a step of distillation costs, beside what it cannot cost less than.

    python tools/benchmark.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml
    python tools/benchmark.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml \
        --device cuda --amp --batch 8 --size 544x1826 --repeat 50 --json output/benchmark.json
    python tools/benchmark.py --config-file configs/Quickstart/faster_rcnn_R18_from_R34.yaml \
        --size 96x320 --sweep --figure output/sweep.png AID.BACKGROUND one

Neither data nor weights are needed: images, boxes and weights are random. docs/performance.md says
what the numbers mean.
"""

import argparse
import json
import os

import aid  # noqa: F401  (registers models, losses and rules)
from aid.utils.errors import AIDError, main_with_clear_errors
from aid_tools.benchmark import Settings, measure, measure_sweep, parse_size
from aid_tools.benchmark.figure import check_format, draw_sweeps
from aid_tools.benchmark.page import results_page, sweep_page
from aid_tools.report.figures import save


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.figure:
        if not args.sweep:
            raise AIDError("--figure draws what --sweep measures: add --sweep")
        check_format(args.figure)
    for path in filter(None, (args.json, args.figure)):
        _check_writable(path)
    height, width = parse_size(args.size)
    names = ("config_file", "batch", "instances", "device", "amp", "threads", "seed", "register")
    settings = Settings(
        height=height,
        width=width,
        opts=tuple(args.opts),
        **{name: getattr(args, name) for name in names},
    )
    rounds = {"repeat": args.repeat, "seconds": args.seconds}
    if args.sweep:
        sweeps = measure_sweep(settings, **rounds)
        print(sweep_page(sweeps, settings))
        found = {"sweeps": [sweep.as_dict() for sweep in sweeps]}
        if args.figure:
            save(draw_sweeps(sweeps), args.figure)
    else:
        results = measure(settings, memory=not args.no_memory, **rounds)
        print(results_page(results, settings))
        found = results.as_dict()
    if args.json:
        with open(args.json, "w") as f:
            json.dump({**found, "setup": settings.as_dict()}, f, indent=1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--config-file", required=True, metavar="FILE", help="of a student that distils")
    add("--size", default="370x1242", metavar="HxW", help="of the images (default: %(default)s)")
    add("--batch", type=int, default=2, metavar="N", help="images a step (default: %(default)s)")
    add(
        "--instances",
        type=int,
        default=10,
        metavar="N",
        help="ground-truth boxes an image (default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--amp", action="store_true", help="half precision, on a GPU")
    add("--threads", type=int, metavar="N", help="on the CPU (default: torch's choice)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--register", metavar="FILE", help="Python file that registers losses, rules, detectors")
    add(
        "--repeat",
        type=int,
        default=10,
        metavar="N",
        help="rounds, at least 3, after one of warm-up (default: %(default)s)",
    )
    add("--seconds", type=float, help="fewer rounds, but 3, if they would take longer than this")
    add("--no-memory", action="store_true", help="leave the memory unmeasured")
    add("--sweep", action="store_true", help="grow the image, the batch, the number of instances")
    add("--json", metavar="FILE", help="write the numbers there")
    add("--figure", metavar="FILE", help="draw the sweep there")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return made


def _check_writable(path: str) -> None:
    """Say before the measurement, not after it, that its result has no place."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise AIDError(f"{path} cannot be written: {error.strerror}") from error
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise AIDError(f"{path} cannot be written: it is a folder, or protected")


if __name__ == "__main__":
    main()
