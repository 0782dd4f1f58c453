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


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", required=True, help="folder of label files")
    parser.add_argument("--results", required=True, help="folder of result files, names as labels")
    parser.add_argument("--json", help="write the figures to this file too")
    args = parser.parse_args(argv)
    precision = evaluate_folders(args.labels, args.results)
    print(format_table(precision))
    if args.json:
        try:
            with open(args.json, "w") as f:
                json.dump(as_dict(precision), f, indent=1)
        except OSError as error:
            raise AIDError(f"--json {args.json} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
