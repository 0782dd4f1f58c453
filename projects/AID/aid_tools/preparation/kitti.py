"""Check of KITTI's images and labels, and its splits, for datasets/prepare_kitti.py."""

import os
from collections import Counter

from tabulate import tabulate
from tqdm import tqdm

from aid.data.kitti import load_image, read_names, read_size
from aid.data.kitti_labels import CLASSES
from aid.utils.errors import AIDError
from aid.utils.files import write_text
from aid.utils.text import counted

from ..files import clear_file_errors

__all__ = [
    "KITTI_IMAGES",
    "check_files",
    "enumerate_some",
    "find_existing",
    "find_gaps",
    "list_images",
    "print_table",
    "read_drives",
    "read_existing",
    "read_split",
    "write_splits",
]

KITTI_IMAGES = 7481
SPLITS = ("train", "val", "trainval")
MOST_NAMES = 20  # in a message


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
            f"{counted(len(unpaired), kind)} without {other} ({enumerate_some(unpaired)})"
            for kind, other, unpaired in (
                ("image", "label", sorted(images - labels)),
                ("label", "image", sorted(labels - images)),
            )
            if unpaired
        ]
        raise AIDError(f"{root}/training: {', '.join(missing)}: unpack both archives completely")
    return sorted(images)


def enumerate_some(names: list[str]) -> str:
    """Join names to a string, with at most MOST_NAMES of them."""
    more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


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
            f"{training}/image_2: {counted(len(broken), 'image')} cannot be read "
            f"({enumerate_some(broken)}): unpack them again"
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
                f"{path} lists {counted(len(unknown), 'image')} not in training/: "
                f"{enumerate_some(unknown)}"
            )
    return splits


def find_existing(root: str) -> list[str]:
    """List the split files that exist."""
    paths = [os.path.join(root, "ImageSets", f"{x}.txt") for x in SPLITS]
    return [path for path in paths if os.path.exists(path)]


def read_existing(root: str, names: list[str]) -> tuple[list[str], list[str]]:
    """Read the split files below ``root``.

    Raises:
        AIDError: see :func:`read_split`; or trainval.txt has other names than the two others.
    """
    train, val, both = (os.path.join(root, "ImageSets", f"{x}.txt") for x in SPLITS)
    for path in (train, val, both):
        if not os.path.isfile(path):
            raise AIDError(f"{path} does not exist: run without --check, if need be with --force")
    splits = read_split(train, val, names)
    if sorted(read_names(both)) != sorted(splits[0] + splits[1]):
        raise AIDError(f"{both} does not list exactly the images of train.txt and val.txt")
    return splits


def write_splits(root: str, splits: dict[str, list[str]]) -> None:
    """Write ImageSets/{train,val,trainval}.txt.

    Raises:
        AIDError: the files cannot be written.
    """
    folder = os.path.join(root, "ImageSets")
    with clear_file_errors(folder):
        os.makedirs(folder, exist_ok=True)
        for split, names in splits.items():
            text = "".join(f"{name}\n" for name in names)
            write_text(os.path.join(folder, f"{split}.txt"), text)


def print_table(splits: dict[str, list[str]], objects: dict[str, Counter], title: str) -> None:
    """Print the numbers of images and of objects of each class of the splits.

    Args:
        splits: {name: image names}.
        objects: of :func:`check_files`.
        title: of the column of the split files.
    """
    rows = []
    for split, members in splits.items():
        count = sum((objects[name] for name in members), Counter())
        rows.append([f"ImageSets/{split}.txt", len(members), *(count[kind] for kind in CLASSES)])
    print(tabulate(rows, headers=[title, "images", *CLASSES]))
