#!/usr/bin/env python3
"""Check on a GPU what cannot be tested without one, and measure the benchmark there.

    python tools/gpu_check.py
    python tools/gpu_check.py --device cpu --seconds 3600

On the CPU it is a rehearsal with less work. The steps: the tests marked gpu, a teacher's training
on rendered scenes, distillation with and without mixed precision, resumed and under torchrun,
detection, export, and the benchmark. Nothing but the repository and its packages is needed, pytest
included. Prints a line for each step and writes gpu_check.json to the output folder, with the last
lines of failed steps and the figures of the benchmark. Exits with status 1 if a step failed or was
not reached in time.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import add_output, make_parser
from aid_tools.command import command

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu rehearses the check (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=340,
        help="time limit of all steps (default: %(default)s)",
    )
    add_output(parser, "output folder", "output/gpu_check")
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid_tools.reliability import check_gpu

    if not check_gpu(ROOT, args.output, args.device, args.seconds):
        sys.exit(1)


if __name__ == "__main__":
    main()
