#!/usr/bin/env python3
"""Compute KITTI's official 2D metric of result files, as in the benchmark's development kit.

    python tools/evaluate_kitti.py --labels datasets/kitti/training/label_2 \\
        --results output/.../inference/kitti_results/kitti_val --json ap.json

Images without a result file are not evaluated; an empty result file means no detections.
"""

import argparse

from aid.evaluation import as_dict, evaluate_folders, format_table
from aid.utils.errors import main_with_clear_errors
from aid.utils.files import write_json
from aid_tools.arguments import add_json, make_parser


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    precision = evaluate_folders(args.labels, args.results)
    print(format_table(precision))
    if args.json:
        write_json(args.json, as_dict(precision), "--json")


def build_parser() -> argparse.ArgumentParser:
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


if __name__ == "__main__":
    main()
