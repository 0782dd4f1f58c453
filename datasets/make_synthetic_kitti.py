#!/usr/bin/env python3
"""Render labeled driving scenes in KITTI's folder and label format.

    python datasets/make_synthetic_kitti.py
    python datasets/make_synthetic_kitti.py --output data/night --conditions day=0.5 night=0.5
    python datasets/make_synthetic_kitti.py --wrong-class 0.1 --jitter 0.1 --missing 0.05

Label noise applies to the training split only; validation labels are correct. The side file
training/scenes.json holds, for each image, its condition, its missing labels and, for each line of
the label file, the visible share, the true type and box and the kind of label noise.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import dataset_folder, make_parser
from aid_tools.command import command

MIN_SIDE = 48


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    root = dataset_folder("synthetic_kitti")
    parser.add_argument("--output", default=root, help="output folder (default: %(default)s)")
    parser.add_argument("--train", type=int, default=600, metavar="N", help="default: %(default)s")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--height", type=int, default=96, metavar="PIXELS", help="default: 96")
    parser.add_argument("--width", type=int, default=320, metavar="PIXELS", help="default: 320")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--conditions",
        nargs="+",
        default=["day=1"],
        metavar="NAME=SHARE",
        help="shares of day, night, fog (default: day=1)",
    )
    noise = parser.add_argument_group(
        "label noise", "shares of the training objects, from 0 to 1; default: 0"
    )
    for option, help in (
        ("--wrong-class", "objects with another of the three classes"),
        ("--jitter", "objects with a box shifted by a quarter or more of its size"),
        ("--missing", "objects without a label"),
        ("--cyclist-as-pedestrian", "cyclists labeled as pedestrians"),
    ):
        noise.add_argument(option, type=float, default=0.0, metavar="SHARE", help=help)
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="number of processes",
    )
    parser.add_argument("--force", action="store_true", help="replace existing scenes")
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from synthetic.folder import Settings, find_rendered, parse_conditions, render_folder
    from synthetic.labels import LabelNoise

    from aid.utils.errors import AIDError
    from aid.utils.text import counted

    shares = (args.wrong_class, args.jitter, args.missing)
    noise = LabelNoise(*shares, args.cyclist_as_pedestrian)
    if not (min(shares) >= 0 and sum(shares) <= 1 and 0 <= args.cyclist_as_pedestrian <= 1):
        raise AIDError(
            "--wrong-class, --jitter and --missing must be from 0 to 1, and so must their sum and "
            "--cyclist-as-pedestrian"
        )
    if min(args.train, args.val, args.workers) < 1 or args.seed < 0:
        raise AIDError("--train, --val and --workers must be at least 1, --seed at least 0")
    if min(args.height, args.width) < MIN_SIDE:
        raise AIDError(f"--height and --width must be at least {MIN_SIDE}")
    if not args.output:
        raise AIDError("--output is empty: name an output folder")
    settings = Settings(
        args.train, args.val, args.height, args.width, args.seed,
        parse_conditions(args.conditions), noise,
    )  # fmt: skip
    if find_rendered(args.output, settings, args.force):
        print(f"{args.output}: scenes with these settings exist and are kept")
        return
    try:
        render_folder(settings, args.output, args.workers)
    except OSError as error:
        raise AIDError(f"--output {args.output} cannot be written: {error}") from error
    print(f"{args.output}: {counted(args.train, 'scene')} for training, {args.val} for validation")


if __name__ == "__main__":
    main()
