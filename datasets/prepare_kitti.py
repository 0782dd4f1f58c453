#!/usr/bin/env python3
"""Write the split files that KITTI does not come with: ImageSets/{train,val,trainval}.txt.

python datasets/prepare_kitti.py                          80 % train, 20 % val, drawn by seed
python datasets/prepare_kitti.py --train-list train.txt --val-list val.txt    a split you have
"""

import argparse
import os
import random

from aid.data.builtin import datasets_root
from aid.errors import AIDError, main_with_clear_errors


def list_images(root: str) -> list[str]:
    """Names of the labelled images below ``root``, sorted.

    Raises:
        AIDError: a folder is missing or empty, or images and labels do not pair up.
    """
    names = {}
    for folder, extension in (("image_2", ".png"), ("label_2", ".txt")):
        path = os.path.join(root, "training", folder)
        if not os.path.isdir(path):
            raise AIDError(f"{path} does not exist: see datasets/README.md for KITTI's layout")
        stems = (os.path.splitext(f) for f in os.listdir(path))
        names[folder] = {stem for stem, found in stems if found == extension}
    alone = sorted(names["image_2"] ^ names["label_2"])
    if alone:
        raise AIDError(
            f"{root}/training: {len(alone)} images without label or labels without image, first "
            f"{alone[0]}: unpack both archives completely"
        )
    if not names["image_2"]:
        raise AIDError(f"{root}/training/image_2 holds no .png file: unpack KITTI's images there")
    return sorted(names["image_2"])


def draw_split(names: list[str], val_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Draw (train, val) at random; both sorted, neither empty.

    Raises:
        AIDError: one of the two would be empty.
    """
    num_val = round(val_share * len(names)) if 0 < val_share < 1 else 0
    if not 0 < num_val < len(names):
        raise AIDError(f"--val-share {val_share} of {len(names)} images leaves a split empty")
    val = set(random.Random(seed).sample(names, num_val))
    return [name for name in names if name not in val], sorted(val)


def read_split(train_list: str, val_list: str, names: list[str]) -> tuple[list[str], list[str]]:
    """Read (train, val) from files of one name per line.

    Raises:
        AIDError: a file is missing or empty, a name is unknown, or is listed twice.
    """
    seen, splits = {}, []
    for path in (train_list, val_list):
        try:
            with open(path) as f:
                splits.append([line.strip() for line in f if line.strip()])
        except (OSError, UnicodeDecodeError) as error:
            raise AIDError(f"{path} cannot be read: {error}") from error
        if not splits[-1]:
            raise AIDError(f"{path} is empty")
        for name in splits[-1]:
            if name in seen:
                raise AIDError(f"{path} lists {name}, which {seen[name]} has already")
            seen[name] = path
    unknown = sorted(set(seen) - set(names))
    if unknown:
        raise AIDError(f"{seen[unknown[0]]} lists {unknown[0]}, which has no image in training/")
    return splits[0], splits[1]


def write_splits(root: str, train: list[str], val: list[str], force: bool) -> None:
    """Write the three split files.

    Raises:
        AIDError: one exists and ``force`` is off, or they cannot be written.
    """
    folder = os.path.join(root, "ImageSets")
    splits = {"train": train, "val": val, "trainval": sorted(train + val)}
    paths = {split: os.path.join(folder, f"{split}.txt") for split in splits}
    existing = [path for path in paths.values() if os.path.exists(path)]
    if existing and not force:
        raise AIDError(f"{existing[0]} exists: --force replaces all three split files")
    try:
        os.makedirs(folder, exist_ok=True)
        for split, names in splits.items():
            with open(paths[split], "w") as f:
                f.writelines(f"{name}\n" for name in names)
            print(f"{paths[split]}: {len(names)} images")
    except OSError as error:
        raise AIDError(f"{folder} cannot be written: {error.strerror}") from error


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        default=os.path.join(datasets_root(), "kitti"),
        help="folder that holds training/ (default: %(default)s)",
    )
    parser.add_argument("--val-share", type=float, default=0.2, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, default: %(default)s")
    parser.add_argument("--train-list", help="file with one image name per line; with --val-list")
    parser.add_argument("--val-list")
    parser.add_argument("--force", action="store_true", help="replace existing split files")
    args = parser.parse_args(argv)
    if bool(args.train_list) != bool(args.val_list):
        parser.error("--train-list and --val-list go together")

    names = list_images(args.root)
    if args.train_list:
        train, val = read_split(args.train_list, args.val_list, names)
    else:
        train, val = draw_split(names, args.val_share, args.seed)
    write_splits(args.root, train, val, args.force)


if __name__ == "__main__":
    main()
