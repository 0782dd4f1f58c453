#!/usr/bin/env python3
"""Compare finished runs: what came out, tables, curves, detections, the teacher's view of labels.

    python tools/report.py output/quickstart/faster_rcnn_R34_FPN \
        output/quickstart/faster_rcnn_R18_FPN output/quickstart/faster_rcnn_R18_from_R34 \
        --output output/quickstart/report

Any output folders of train_net.py will do, in the order of the table's rows. Which run is whose
teacher, which plain student is that of a distilled one, and how that was distilled, is read from
their configs. Writes report.html, one file
that holds everything and needs no network, the same as report.md with its pictures beside it, and
the numbers as report.json. What cannot be compared is named there, and left out.
"""

import argparse
import os
import sys

import aid  # noqa: F401  (registers models and datasets)
from aid.data import register_from_file
from aid.utils.errors import AIDError, main_with_clear_errors
from aid_tools.report import load_runs, write_report


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="output folders")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="of the report")
    parser.add_argument(
        "--images", type=int, default=6, metavar="N", help="on the sheet (default: %(default)s)"
    )
    parser.add_argument(
        "--train-images",
        type=int,
        default=300,
        metavar="N",
        help="that the teacher judges (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.4, help="score to draw from (default: %(default)s)"
    )
    parser.add_argument(
        "--register", metavar="FILE", help="Python file that registers your own datasets"
    )
    args = parser.parse_args(argv)
    if min(args.images, args.train_images) < 1:
        raise AIDError("--images and --train-images must be at least 1")
    if args.register:
        register_from_file(args.register)
    runs, left_out = load_runs(args.runs)
    for line in left_out:
        print(f"warning: {line}", file=sys.stderr)
    write_report(runs, args.output, args.images, args.train_images, args.threshold, left_out)
    print(f"Report: {os.path.join(args.output, 'report.html')}, and the same as report.md")


if __name__ == "__main__":
    main()
