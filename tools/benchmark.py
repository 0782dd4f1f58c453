#!/usr/bin/env python3
"""Measure time and memory of a distillation step, and its lower bound in plain Detectron2.

    python tools/benchmark.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml
    python tools/benchmark.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml \\
        --device cuda --batch 8 --json output/benchmark.json SOLVER.AMP.ENABLED True
    python tools/benchmark.py --config-file configs/Quickstart/faster_rcnn_R18_from_R34.yaml \\
        --size 96x320 --sweep --figure output/sweep.png AID.BACKGROUND one
    python tools/benchmark.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --flops

Images, boxes and weights are random, so no data and no checkpoints are needed. See
docs/performance.md for the meaning of the numbers.
"""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import (
    add_config_file,
    add_device,
    add_json,
    add_overrides,
    add_register,
    make_parser,
)
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config_file(parser, "config of a student with a teacher")
    add(
        "--size",
        default="370x1242",
        metavar="HxW",
        help="height and width of the images (default: %(default)s)",
    )
    add("--batch", type=int, default=2, metavar="N", help="images per step (default: %(default)s)")
    add(
        "--instances",
        type=int,
        default=10,
        metavar="N",
        help="ground truth boxes per image (default: %(default)s)",
    )
    add_device(parser, "cpu")
    add("--threads", type=int, metavar="N", help="number of CPU threads (default: torch's choice)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)")
    add_register(parser, "losses, rules or detectors")
    add(
        "--repeat",
        type=int,
        default=10,
        metavar="N",
        help="number of rounds after the warm-up, at least 3 (default: %(default)s)",
    )
    add(
        "--seconds",
        type=float,
        help="time limit, which reduces the number of rounds to at least 3 (default: no limit)",
    )
    add("--no-memory", action="store_true", help="do not measure memory")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--sweep",
        action="store_true",
        help="vary image size, batch size and number of instances instead",
    )
    instead.add_argument(
        "--flops",
        action="store_true",
        help="count parameters and multiply-adds of student and teacher instead",
    )
    add_json(parser)
    add("--figure", metavar="FILE", help="draw the results of --sweep to this file")
    add_overrides(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.utils.errors import AIDError
    from aid.utils.files import check_writable
    from aid_tools.benchmark import Settings, count_costs, measure, measure_sweep, parse_size
    from aid_tools.benchmark.figure import check_format, draw_sweeps
    from aid_tools.benchmark.page import costs_page, results_page, sweep_page
    from aid_tools.files import clear_file_errors, write_json
    from aid_tools.report.figures import save

    if args.figure:
        if not args.sweep:
            raise AIDError("--figure needs the results of --sweep: add --sweep")
        check_format(args.figure)
    for path in filter(None, (args.json, args.figure)):
        check_writable(path)
    height, width = parse_size(args.size)
    names = ("config_file", "batch", "instances", "device", "threads", "seed", "register")
    settings = Settings(
        height=height,
        width=width,
        opts=tuple(args.opts),
        **{name: getattr(args, name) for name in names},
    )
    rounds = {"repeat": args.repeat, "seconds": args.seconds}
    if args.flops:
        content = count_costs(settings)
        print(costs_page(content, settings))
    elif args.sweep:
        sweeps = measure_sweep(settings, **rounds)
        print(sweep_page(sweeps, settings))
        content = {"sweeps": list(map(asdict, sweeps))}
        if args.figure:
            with clear_file_errors(args.figure, "--figure"):
                save(draw_sweeps(sweeps), args.figure)
    else:
        results = measure(settings, memory=not args.no_memory, **rounds)
        print(results_page(results, settings))
        content = results.as_dict()
    if args.json:
        write_json(args.json, {**content, "setup": settings.as_dict()}, "--json")


if __name__ == "__main__":
    main()
