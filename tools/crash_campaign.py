#!/usr/bin/env python3
"""Kill trainings at random moments, resume them, and compare how they end.

    python tools/crash_campaign.py --kills 20

A small AID student is trained once without interruption, and once for each number of loader workers
with kills (SIGKILL), half of them while a checkpoint is being written. After each kill every
checkpoint must be readable and none may be lost; at the end all of them must be those of the
uninterrupted run, bit for bit. Exits with status 1 if anything of this fails.
"""

import argparse
import os
import sys

from aid.utils.errors import main_with_clear_errors
from aid_tools.reliability import run_campaign

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=20, metavar="N", help="in all (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 2],
        metavar="N",
        help="numbers of loader workers to kill with (default: 0 2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--output", default="output/reliability", help="default: %(default)s")
    args = parser.parse_args(argv)
    workers = tuple(dict.fromkeys(args.workers))
    result = run_campaign(ROOT, args.output, args.kills, workers, args.seed)
    if result["failure"]:
        sys.exit(f"error: {result['failure']}")
    print(
        f"{result['kills']} kills, {result['kills_during_write']} of them during a write: no "
        f"checkpoint unreadable or lost, all {result['compared_checkpoints']} bit for bit those of "
        f"the uninterrupted run ({os.path.join(args.output, 'crash_campaign.json')})"
    )


if __name__ == "__main__":
    main()
