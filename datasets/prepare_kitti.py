#!/usr/bin/env python3
"""Check KITTI's unpacked images and labels, and write split files, which KITTI does not provide.

    python datasets/prepare_kitti.py                       80 % train, 20 % val, drawn by seed
    python datasets/prepare_kitti.py --mapping devkit/mapping             the same, by whole drives
    python datasets/prepare_kitti.py --train-list train.txt --val-list val.txt    existing split

KITTI's images are frames of drives, and the frames of a drive resemble each other. A random split
therefore has images of the same places in training and validation. The folder "mapping" of the
devkit assigns images to drives.
"""

import argparse
import os
from collections import Counter

from tabulate import tabulate
from tqdm import tqdm

from aid.data.builtin import datasets_root
from aid.data.kitti import load_image, read_names, read_size
from aid.data.kitti_labels import CLASSES
from aid.data.split import draw_split
from aid.utils.errors import AIDError, main_with_clear_errors

KITTI_IMAGES = 7481


def list_images(root: str) -> list[str]:
    """List the names of the labeled images below ``root``, sorted.

    Raises:
        AIDError: a folder is missing or empty, or images and labels do not pair up.
    """
    names = {}
    for folder, extension in (("image_2", ".png"), ("label_2", ".txt")):
        path = os.path.join(root, "training", folder)
        if not os.path.isdir(path):
            raise AIDError(f"{path} does not exist: see datasets/README.md for KITTI's layout")
        stems = (os.path.splitext(f) for f in os.listdir(path))
        names[folder] = {stem for stem, suffix in stems if suffix == extension}
    images, labels = names["image_2"], names["label_2"]
    if not images:
        raise AIDError(f"{root}/training/image_2 holds no .png file: unpack KITTI's images there")
    if images != labels:
        missing = [
            f"{len(unpaired)} {kind} ({enumerate_some(unpaired)})"
            for kind, unpaired in (
                ("images without label", sorted(images - labels)),
                ("labels without image", sorted(labels - images)),
            )
            if unpaired
        ]
        raise AIDError(f"{root}/training: {', '.join(missing)}: unpack both archives completely")
    return sorted(images)


def enumerate_some(names: list[str], most: int = 20) -> str:
    """Join names to a string, with at most ``most`` of them."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_files(root: str, names: list[str]) -> dict[str, Counter]:
    """Read every label and every image's header.

    Returns:
        {image name: number of objects of each class}.

    Raises:
        AIDError: image headers cannot be read (the message counts them), or a label is malformed.
    """
    training = os.path.join(root, "training")
    broken = [name for name in names if not is_readable(f"{training}/image_2/{name}.png")]
    if broken:
        raise AIDError(
            f"{training}/image_2: {len(broken)} images cannot be read ({enumerate_some(broken)}): "
            "unpack them again"
        )
    objects = {}
    for name in tqdm(names, desc="Checking", unit="image"):
        annotations = load_image(training, name, 0)["annotations"]
        objects[name] = Counter(CLASSES[x["category_id"]] for x in annotations if not x["iscrowd"])
    return objects


def is_readable(image: str) -> bool:
    """Whether the header of an image file can be read."""
    try:
        read_size(image)
    except AIDError:
        return False
    return True


def find_gaps(names: list[str]) -> list[str]:
    """List the numbers missing between the first and the last name, if all are 6-digit numbers."""
    if not all(len(name) == 6 and name.isascii() and name.isdigit() for name in names):
        return []
    present = {int(name) for name in names}
    return [f"{i:06}" for i in range(min(present), max(present)) if i not in present]


def read_drives(mapping: str, names: list[str]) -> list[list[str]]:
    """Group image names by drive.

    Args:
        mapping: folder of the devkit with train_mapping.txt, whose lines are date, drive and frame,
            and train_rand.txt, whose entry i is the line number (from 1) of image i.
        names: image names, which are KITTI's numbers.

    Raises:
        AIDError: a file is missing or malformed, or has no entry for an image.
    """
    if os.path.isfile(mapping):
        mapping = os.path.dirname(mapping)
    lines, order = (
        _read(os.path.join(mapping, f)) for f in ("train_mapping.txt", "train_rand.txt")
    )
    lines = [line.split() for line in lines.splitlines()]
    order = order.replace(",", " ").split()
    drives = {}
    for name in names:
        try:
            line = int(order[int(name)])
            if line < 1 or int(name) < 0:
                raise IndexError
            date, drive, _ = lines[line - 1]
        except (IndexError, ValueError):
            raise AIDError(
                f"{mapping}: train_rand.txt and train_mapping.txt have no drive for image {name}: "
                "use both files of KITTI's object development kit"
            ) from None
        drives.setdefault((date, drive), []).append(name)
    return [drives[key] for key in sorted(drives)]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as error:
        raise AIDError(f"{path} cannot be read: {error}") from error


def read_split(train_list: str, val_list: str, names: list[str]) -> tuple[list[str], list[str]]:
    """Read a split (train, val) from two files with one image name per line.

    Raises:
        AIDError: a file is missing or empty, or a name is unknown or listed twice.
    """
    splits = read_names(train_list), read_names(val_list)
    both = set(splits[0]) & set(splits[1])
    if both:
        raise AIDError(f"{val_list} and {train_list} both list {min(both)}")
    known = set(names)
    for path, members in zip((train_list, val_list), splits, strict=True):
        unknown = [name for name in members if name not in known]
        if unknown:
            raise AIDError(
                f"{path} lists {len(unknown)} images that are not in training/: "
                f"{enumerate_some(unknown)}"
            )
    return splits


def find_existing(root: str) -> list[str]:
    """List the split files that exist."""
    paths = [os.path.join(root, "ImageSets", f"{x}.txt") for x in ("train", "val", "trainval")]
    return [path for path in paths if os.path.exists(path)]


def write_splits(root: str, splits: dict[str, list[str]]) -> None:
    """Write ImageSets/{train,val,trainval}.txt.

    Raises:
        AIDError: the files cannot be written.
    """
    folder = os.path.join(root, "ImageSets")
    try:
        os.makedirs(folder, exist_ok=True)
        for split, names in splits.items():
            with open(os.path.join(folder, f"{split}.txt"), "w") as f:
                f.writelines(f"{name}\n" for name in names)
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
    parser.add_argument("--val-share", type=float, help="share of validation images, default: 0.2")
    parser.add_argument("--seed", type=int, help="seed of the random split, default: 0")
    parser.add_argument("--mapping", help="mapping folder of the devkit, to split by whole drives")
    parser.add_argument("--train-list", help="file with one image name per line; with --val-list")
    parser.add_argument("--val-list", help="the same for validation")
    parser.add_argument("--force", action="store_true", help="replace existing split files")
    args = parser.parse_args(argv)
    if bool(args.train_list) != bool(args.val_list):
        parser.error("--train-list and --val-list go together")
    drawn = (args.val_share, args.seed, args.mapping)
    if args.train_list and any(x is not None for x in drawn):
        parser.error("--val-share, --seed and --mapping cannot be used with --train-list")

    existing = find_existing(args.root)
    if existing and not args.force:
        raise AIDError(f"{existing[0]} exists: --force replaces all three split files")
    names = list_images(args.root)
    if args.train_list:
        train, val = read_split(args.train_list, args.val_list, names)
    else:
        groups = read_drives(args.mapping, names) if args.mapping else [[x] for x in names]
        share = 0.2 if args.val_share is None else args.val_share
        train, val = draw_split(groups, share, args.seed or 0)
    objects = check_files(args.root, names)
    splits = {"train": train, "val": val, "trainval": sorted(train + val)}
    write_splits(args.root, splits)
    whole = "" if len(names) == KITTI_IMAGES else f" (KITTI has {KITTI_IMAGES})"
    print(f"{args.root}/training: {len(names)} images{whole}, each with a label")
    gaps = find_gaps(names)
    if gaps:
        print(f"missing numbers between the first and the last: {enumerate_some(gaps)}")
    rows = []
    for split, members in splits.items():
        count = sum((objects[name] for name in members), Counter())
        rows.append([f"ImageSets/{split}.txt", len(members), *(count[kind] for kind in CLASSES)])
    print(tabulate(rows, headers=["written", "images", *CLASSES]))


if __name__ == "__main__":
    main()
