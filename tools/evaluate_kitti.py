#!/usr/bin/env python3
"""Compute KITTI's official 2D metric of result files, as in the benchmark's development kit.

    python tools/evaluate_kitti.py --labels datasets/kitti/training/label_2 \\
        --results output/.../inference/kitti_results/kitti_val --json ap.json

Images without a result file are not evaluated; an empty result file means no detections.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import add_json, make_parser
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--labels", required=True, metavar="FOLDER", help="folder of the label files")
    add(
        "--results",
        required=True,
        metavar="FOLDER",
        help="folder of the result files, named as the label files",
    )
    add_json(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.evaluation import as_dict, evaluate_folders, format_table
    from aid_tools.files import write_json

    precision = evaluate_folders(args.labels, args.results)
    print(format_table(precision))
    if args.json:
        write_json(args.json, as_dict(precision), "--json")


if __name__ == "__main__":
    main()
