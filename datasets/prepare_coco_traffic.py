#!/usr/bin/env python3
"""Write the annotations of COCO traffic, a subset of COCO 2017 with 13 categories.

    python datasets/prepare_coco_traffic.py                  both splits
    python datasets/prepare_coco_traffic.py --split val      validation split only

An image is kept if it has an annotation, crowd regions included, of a vehicle (bicycle, car,
motorcycle, bus, train, truck), a traffic light, a fire hydrant or a stop sign. All annotations of
the 13 categories on the kept images are kept.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import dataset_folder, make_parser
from aid_tools.command import command

SPLITS = ("train", "val")


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--root",
        default=dataset_folder("coco"),
        help="folder that holds annotations/ (default: %(default)s)",
    )
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=SPLITS, help="default: both")
    parser.add_argument("--force", action="store_true", help="replace existing files")
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.data.coco_traffic import annotation_file
    from aid.utils.errors import AIDError
    from aid_tools.preparation.coco_traffic import prepare

    for split in args.split:
        path = annotation_file(args.root, split)
        if os.path.exists(path) and not args.force:
            raise AIDError(f"{path} exists: --force replaces it")
    for split in args.split:
        prepare(args.root, split)


if __name__ == "__main__":
    main()
