#!/usr/bin/env python3
"""Kill training runs at random moments, resume them, and compare the results.

    python tools/crash_campaign.py --kills 20

A small AID student is trained once without interruption, and once with kills (SIGKILL) for each
number of loader workers. About half of the kills hit the write of a checkpoint. After each kill all
checkpoints must be present and readable; at the end they must be bit-equal to those of the
uninterrupted run. Exits with status 1 if a check fails.
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
    add = parser.add_argument
    add(
        "--kills",
        type=int,
        default=20,
        metavar="N",
        help="total number of kills (default: %(default)s)",
    )
    add(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 2],
        metavar="N",
        help="numbers of loader workers, each with a training of its own (default: 0 2)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="random seed of the times of the kills (default: %(default)s)",
    )
    add_output(parser, "output folder", "output/reliability")
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.utils.text import counted
    from aid_tools.reliability import run_campaign

    workers = tuple(dict.fromkeys(args.workers))
    result = run_campaign(ROOT, args.output, args.kills, workers, args.seed)
    if result["failure"]:
        sys.exit(f"error: {result['failure']}")
    print(
        f"{counted(result['kills'], 'kill')}, {result['kills_during_write']} of them during a "
        f"write: no checkpoint unreadable or lost, all {result['compared_checkpoints']} bit-equal "
        f"to the uninterrupted run ({os.path.join(args.output, 'crash_campaign.json')})"
    )


if __name__ == "__main__":
    main()
