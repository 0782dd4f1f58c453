#!/usr/bin/env python3
"""Compare finished runs: summary, tables, curves, detections and the teacher's losses on labels.

    python tools/report.py output/quickstart/faster_rcnn_R34_FPN \\
        output/quickstart/faster_rcnn_R18_FPN output/quickstart/faster_rcnn_R18_from_R34 \\
        --output output/quickstart/report

The arguments are output folders of train_net.py, in the order of the table's rows. The roles of the
runs (teacher, plain student, distilled student) are read from their configs. The tool writes
report.html, one self-contained file; report.md with its figures next to it; and the numbers as
report.json. Runs that cannot be compared are skipped and listed in the report.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import add_output, add_register, make_parser, score
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="FOLDER", help="output folders of train_net.py")
    add_output(parser, "folder of the report")
    add(
        "--images",
        type=int,
        default=6,
        metavar="N",
        help="number of test images in the figure of detections (default: %(default)s)",
    )
    add(
        "--train-images",
        type=int,
        default=300,
        metavar="N",
        help="number of training images for the teacher's losses (default: %(default)s)",
    )
    add(
        "--threshold",
        type=score,
        default=0.4,
        metavar="SCORE",
        help="minimum score of the detections to draw (default: %(default)s)",
    )
    add_register(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.data import register_from_file
    from aid.utils.errors import AIDError
    from aid.utils.text import one_line, visible
    from aid_tools.report import load_runs, write_report

    if min(args.images, args.train_images) < 1:
        raise AIDError("--images and --train-images must be at least 1")
    if args.register:
        register_from_file(args.register)
    runs, left_out = load_runs(args.runs)
    for line in left_out:
        print(f"warning: {one_line(line)}", file=sys.stderr)
    write_report(runs, args.output, args.images, args.train_images, args.threshold, left_out)
    print(f"Report: {visible(os.path.join(args.output, 'report.html'))}, also as report.md")


if __name__ == "__main__":
    main()
