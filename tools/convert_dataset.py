#!/usr/bin/env python3
"""Convert labels of Pascal VOC, YOLO, CVAT, Labelme, COCO or KITTI, and report on the data.

    python tools/convert_dataset.py LABELS --output fleet_data
    python tools/convert_dataset.py annotations.xml --images frames --output fleet_data
    python tools/convert_dataset.py LABELS --output fleet_data --val-share 0.1 --seed 1

Writes train.json, val.json and, for test images, test.json in COCO's format; images, a link to the
folder of the images; and data_report.md and .json. The format is recognized. The split is that of
the data (folders such as train and valid, lists, or files), or else drawn at random. See
docs/own_data.md.
"""

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import add_output, make_parser
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("labels", metavar="LABELS", help="folder of labels, or a label file")
    add_output(parser, "output folder, which must be new or empty")
    add(
        "--images",
        default="",
        metavar="FOLDER",
        help="folder of the images (default: the folder of the labels)",
    )
    add(
        "--format",
        choices=("voc", "yolo", "cvat", "labelme", "coco", "kitti"),
        default="",
        help="format of the labels (default: recognized)",
    )
    add(
        "--val-share",
        type=float,
        metavar="SHARE",
        help="draw this share of the images for validation (default: the split of the data, or 0.2 "
        "if they have none)",
    )
    add("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    add(
        "--whole-folders",
        action="store_true",
        help="draw whole folders of images, such as the frames of a video",
    )
    add(
        "--val-list",
        metavar="FILE",
        help="text file with the names of the validation images, one a line",
    )
    add("--copy-images", action="store_true", help="copy the images instead of linking to them")
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.utils.errors import AIDError
    from aid.utils.files import write_text
    from aid.utils.text import visible
    from aid_tools.files import check_empty, check_outside, output_folder, write_json
    from aid_tools.own_data import (
        assign_splits,
        convert,
        describe,
        measure,
        read_labels,
        read_val_list,
        write_splits,
    )

    drawn = args.val_share is not None or args.whole_folders
    if args.val_list and drawn:
        raise AIDError("--val-list names the validation images: leave out --val-share and the like")
    check_outside(args.output, args.labels, args.images)
    labels = read_labels(args.labels, args.images, args.format)
    if args.val_list:
        how_split = read_val_list(args.val_list, labels.images)
    else:
        how_split = assign_splits(labels.images, args.val_share, args.seed, args.whole_folders)
    with output_folder(args.output):
        check_empty(args.output)
        splits = convert(labels)
        report = measure(labels, splits, how_split)
        write_splits(splits, args.output, args.copy_images)
        write_json(os.path.join(args.output, "data_report.json"), report)
        text = describe(report)
        write_text(os.path.join(args.output, "data_report.md"), text)
    print("\n".join(map(visible, text.splitlines())))
    print()
    print(visible(f"Written to {args.output}. Next, with a NAME of your choice:"))
    script = os.path.relpath(Path(__file__).resolve().with_name("new_project.py"))
    print(visible(shlex.join(["python", script, "NAME", "--data", args.output])))


if __name__ == "__main__":
    main()
