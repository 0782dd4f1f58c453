#!/usr/bin/env python3
"""Check KITTI's unpacked images and labels, and write split files, which KITTI does not provide.

    python datasets/prepare_kitti.py                       80 % train, 20 % val, drawn by seed
    python datasets/prepare_kitti.py --mapping devkit/mapping             the same, by whole drives
    python datasets/prepare_kitti.py --train-list train.txt --val-list val.txt    existing split
    python datasets/prepare_kitti.py --check      check the images, the labels and the split files

KITTI's images are frames of drives, and the frames of a drive resemble each other. A random split
therefore has images of the same places in training and validation. The folder "mapping" of the
devkit assigns images to drives.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import dataset_folder, make_parser
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--root",
        default=dataset_folder("kitti"),
        help="folder that holds training/ (default: %(default)s)",
    )
    parser.add_argument("--val-share", type=float, help="share of validation images, default: 0.2")
    parser.add_argument("--seed", type=int, help="seed of the random split, default: 0")
    parser.add_argument("--mapping", help="mapping folder of the devkit, to split by whole drives")
    parser.add_argument("--train-list", help="file with one image name per line; with --val-list")
    parser.add_argument("--val-list", help="the same for validation")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--force", action="store_true", help="replace existing split files")
    choice.add_argument("--check", action="store_true", help="write nothing, check what there is")
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.utils.errors import AIDError
    from aid_tools.preparation.kitti import (
        KITTI_IMAGES,
        check_files,
        enumerate_some,
        find_existing,
        find_gaps,
        list_images,
        print_table,
        read_drives,
        read_existing,
        read_split,
        write_splits,
    )
    from aid_tools.preparation.split import draw_split

    if bool(args.train_list) != bool(args.val_list):
        raise AIDError("--train-list and --val-list go together")
    drawn = (args.val_share, args.seed, args.mapping)
    if args.train_list and any(x is not None for x in drawn):
        raise AIDError("--val-share, --seed and --mapping cannot be used with --train-list")
    if args.check and (args.train_list or any(x is not None for x in drawn)):
        raise AIDError("--check reads the split files that exist: leave out options of a new split")

    existing = find_existing(args.root)
    if existing and not (args.force or args.check):
        raise AIDError(
            f"{existing[0]} exists: --force replaces all three split files, --check keeps them"
        )
    names = list_images(args.root)
    if args.check:
        train, val = read_existing(args.root, names)
    elif args.train_list:
        train, val = read_split(args.train_list, args.val_list, names)
    else:
        groups = read_drives(args.mapping, names) if args.mapping else [[x] for x in names]
        share = 0.2 if args.val_share is None else args.val_share
        train, val = draw_split(groups, share, args.seed or 0)
    objects = check_files(args.root, names)
    splits = {"train": train, "val": val, "trainval": sorted(train + val)}
    if not args.check:
        write_splits(args.root, splits)
    whole = "" if len(names) == KITTI_IMAGES else f" (KITTI has {KITTI_IMAGES})"
    print(f"{args.root}/training: {len(names)} images{whole}, each with a label")
    gaps = find_gaps(names)
    if gaps:
        print(f"missing numbers between the first and the last: {enumerate_some(gaps)}")
    print_table(splits, objects, "checked" if args.check else "written")


if __name__ == "__main__":
    main()
