#!/usr/bin/env python3
"""Visualize distillation on images: imitation weights, teacher losses, attention and features.

    python tools/visualize.py --config-file output/quickstart/faster_rcnn_R18_from_R34 \\
        --num-gpus 0 --output output/pictures --contact-sheet 8

Writes one page per image: the ground truth with the teacher's loss on each object, and, for each
level, weight map, attention, and the difference between the features of teacher and student, before
training and, with an output folder or --weights, after it. See docs/visualize.md.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import (
    add_config_file,
    add_num_gpus,
    add_output,
    add_overrides,
    add_register,
    add_weights,
    make_parser,
)
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config_file(parser, "output folder or config file of a student with a teacher")
    add_weights(
        parser,
        "checkpoint of the student's run (default: the last one of the output folder; none with "
        "a config file, which shows the student before training)",
        "",
    )
    add_output(parser, "folder of the pictures")
    add(
        "--dataset",
        metavar="NAME",
        help="name of a registered dataset (default: the first of DATASETS.TEST)",
    )
    add(
        "--images",
        default="6",
        metavar="N|NAME,NAME",
        help="number of evenly spaced images, or names of image files (default: %(default)s)",
    )
    add(
        "--contact-sheet",
        type=int,
        default=0,
        metavar="N",
        help="also draw a sheet of the N objects with the smallest and the largest weights of each "
        "teacher (default: no sheet)",
    )
    add_num_gpus(parser, 1, (0, 1))
    add_register(parser)
    add_overrides(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    import torch

    from aid.config import load_config
    from aid.data.register import register_from_file
    from aid.utils.errors import AIDError
    from aid.utils.text import one_line, visible
    from aid_tools.visualization.load import check_student, choose_images, files_of, load_records
    from aid_tools.visualization.pages import Pages

    if args.contact_sheet < 0:
        raise AIDError(f"--contact-sheet {args.contact_sheet}: give a number from 0")
    if args.register:
        register_from_file(args.register)
    config_file, weights = files_of(args.config_file, args.weights)
    cfg = load_config(config_file, args.opts)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise AIDError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU here: add --num-gpus 0"
        )
    check_student(cfg)
    cfg.SEED = max(cfg.SEED, 0)
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), None)
    if dataset is None:
        raise AIDError("DATASETS.TEST is empty: name a dataset by --dataset")
    records = load_records(cfg, dataset)
    shown = choose_images(records, args.images)
    pages = Pages(cfg, dataset, weights)
    for path in pages.write(shown, records, args.contact_sheet, args.output):
        print(visible(path))
    for note in pages.notes:
        print(one_line(note))


if __name__ == "__main__":
    main()
