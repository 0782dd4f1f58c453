#!/usr/bin/env python3
"""Check that the memory and the open files of a training do not grow. Needs Linux.

    python tools/load_test.py --config-file configs/Quickstart/faster_rcnn_R18_from_R34.yaml \\
        SOLVER.MAX_ITER 2000

The tool runs train_net.py as a process and samples it, with its loader workers, once per second:
resident memory without mapped files such as libraries, and open file descriptors. Each is flat if
the slope through its samples (Theil-Sen, robust against peaks) is within a limit with 95 %
confidence. Iterations before --from-iteration, while caches fill, and the final evaluation are
excluded. The output folder contains load_test.json, load_test.png and the output folder of the run.
The exit code is 1 if memory or descriptors are not flat.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import (
    add_config_file,
    add_num_gpus,
    add_output,
    add_overrides,
    add_register,
    make_parser,
)
from aid_tools.command import command

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train_net.py")
# Maximum growth in 1000 iterations. Detectron2 itself keeps all logged scalars in memory, about
# 2.4 MiB per 1000 iterations of a run with a teacher.
LIMITS = {"memory": 10.0, "descriptors": 0.5}


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config_file(parser, "config of a training")
    add_num_gpus(parser, 0)
    add_output(parser, "output folder", "output/reliability")
    add(
        "--from-iteration",
        type=int,
        default=200,
        metavar="N",
        help="first iteration of the measurement (default: %(default)s)",
    )
    add(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time between two samples (default: %(default)g)",
    )
    add_register(parser)
    add_overrides(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    import numpy as np

    from aid.config import load_config
    from aid.utils.errors import AIDError
    from aid_tools.benchmark.growth import draw_growth, measure_growth, place_in_time
    from aid_tools.benchmark.load_test import TITLES, verdict, watch
    from aid_tools.benchmark.processes import can_count
    from aid_tools.files import output_folder, write_json
    from aid_tools.report.figures import save

    max_iter = load_config(args.config_file, args.opts).SOLVER.MAX_ITER
    if not 0 <= args.from_iteration < max_iter or args.interval <= 0:
        raise AIDError(
            f"--from-iteration {args.from_iteration} must be below SOLVER.MAX_ITER {max_iter}, and "
            f"--interval {args.interval:g} above 0"
        )
    if not can_count():
        raise AIDError(
            "this system does not report the memory of processes: Linux 5.4 or later is needed"
        )
    samples = watch(SCRIPT, args, max_iter)
    columns = {key: np.array([x[key] for x in samples]) for key in samples[0]}
    iterations = place_in_time(columns["seconds"], columns["logged"])
    start, end = args.from_iteration, max_iter - 1
    growths = {
        k: measure_growth(iterations, columns[k], start, end, limit) for k, limit in LIMITS.items()
    }
    panels = {TITLES[key]: (columns[key], growth) for key, growth in growths.items()}
    content = {
        "config": args.config_file,
        "overrides": args.opts,
        "from_iteration": start,
        "found": {key: {**asdict(x), "is_flat": x.is_flat} for key, x in growths.items()},
        "samples": {
            "iteration": iterations.tolist(),
            **{k: v.tolist() for k, v in columns.items()},
        },
    }
    with output_folder(args.output):
        save(draw_growth(iterations, panels, start), os.path.join(args.output, "load_test.png"))
        write_json(os.path.join(args.output, "load_test.json"), content)
    print(verdict(growths, start))
    sys.exit(not all(x.is_flat for x in growths.values()))


if __name__ == "__main__":
    main()
