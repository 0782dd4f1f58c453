#!/usr/bin/env python3
"""Compute KITTI's official 2D metric of result files, as in the benchmark's development kit.

    python tools/evaluate_kitti.py --labels datasets/kitti/training/label_2 \\
        --results output/.../inference/kitti_results/kitti_val --json ap.json

Images without a result file are not evaluated; an empty result file means no detections.
"""

import argparse
import json

from aid.evaluation import as_dict, evaluate_folders, format_table
from aid.utils.errors import AIDError, main_with_clear_errors
from aid_tools.arguments import add_json, make_parser


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    precision = evaluate_folders(args.labels, args.results)
    print(format_table(precision))
    if args.json:
        try:
            with open(args.json, "w") as f:
                json.dump(as_dict(precision), f, indent=1)
        except OSError as error:
            raise AIDError(f"--json {args.json} cannot be written: {error.strerror}") from error


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
