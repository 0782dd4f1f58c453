"""Files of a folder of labels: label files, the images that they belong to, and their splits."""

import json
import os
import re
from collections import defaultdict
from xml.etree import ElementTree

from aid.data.images import IMAGES
from aid.utils.errors import AIDError
from aid.utils.files import files_below

from .labels import Labels

__all__ = [
    "Images",
    "LOOKED_AT",
    "LabelFiles",
    "ROLES",
    "apply_lists",
    "check_found",
    "count_unlabeled",
    "find_split",
    "read_json",
    "read_text",
    "read_xml",
    "split_in_name",
    "split_named",
]

# Number of files that are opened to recognize a format.
LOOKED_AT = 20
# Names of a split, of a folder or in the name of a file.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Folders that tell images from labels, and are no part of an image's name.
ROLES = {"images", "image", "imgs", "img", "jpegimages", "image_2", "data"}
ROLES |= {"labels", "label", "annotations", "ann", "label_2", "xml", "json", "txt"}


class LabelFiles:
    """Label files of a folder, listed once.

    Attributes:
        root: the folder.
        listed: {name of an image: split} of the lists in ImageSets, as of Pascal VOC and KITTI.
    """

    def __init__(self, path: str):
        """
        Args:
            path: a folder, or one label file; YOLO's data.yaml stands for its folder.

        Raises:
            AIDError: there is nothing at the path, a file is no regular one, or a list names an
                image of another.
        """
        if not os.path.exists(path):
            raise AIDError(f"{path} does not exist: name a folder of labels, or a label file")
        self.root = path if os.path.isdir(path) else os.path.dirname(path) or "."
        is_folder = os.path.isdir(path) or path.lower().endswith((".yaml", ".yml"))
        self._paths = files_below(self.root) if is_folder else [path]
        _check_regular(self._paths)
        self.listed = self._read_lists()

    def with_extension(self, *extensions: str) -> list[str]:
        """Sorted paths of the files with one of the extensions, in lower case and with dot."""
        return [x for x in self._paths if os.path.splitext(x)[1].lower() in extensions]

    def extensions(self) -> list[str]:
        """Extensions of all files, sorted."""
        return sorted({os.path.splitext(x)[1].lower() for x in self._paths} - {""})

    def split_of(self, path: str) -> str | None:
        """Split of a label file according to the folders that it is in; None if unknown."""
        return _split_of(os.path.relpath(path, self.root))

    def beside(self, path: str, name: str) -> str:
        """Name of an image with the folders of the label file that names it, below the root."""
        return os.path.join(os.path.relpath(os.path.dirname(path) or ".", self.root), name)

    def _read_lists(self) -> dict[str, str]:
        by_folder: dict[str, dict[str, str]] = defaultdict(dict)
        for path in self.with_extension(".txt"):
            folder, name = os.path.split(path)
            folders = folder.split(os.sep)
            if "ImageSets" not in folders[-2:] or name not in ("train.txt", "val.txt", "test.txt"):
                continue
            splits, split = by_folder[folder], name[:-4]
            for line in filter(None, map(str.strip, read_text(path).splitlines())):
                # Pascal VOC's lists of persons have the number of the person, too.
                entry = line.split()[0] if folders[-1] in ("Action", "Layout") else line
                image = _lower_suffix("/".join(_parts(entry)))
                # KITTI counts its test images anew from 000000: train and val, read later, win.
                if splits.get(image, "test") not in ("test", split):
                    raise AIDError(
                        f"{path} and {splits[image]}.txt beside it both list {entry}: take it out "
                        "of one"
                    )
                splits[image] = split
        return {image: split for splits in by_folder.values() for image, split in splits.items()}


class Images:
    """Images of a folder, found by the names that labels give them.

    Attributes:
        root: the folder.
        paths: sorted paths of all images.
        elsewhere: {name: path} of the images that were found in other folders than the name has.
    """

    def __init__(self, root: str, paths: list[str]):
        """
        Args:
            root: the folder.
            paths: images in it and in its subfolders.
        """
        self.root = root
        self.paths = paths
        self.elsewhere: dict[str, str] = {}
        self._by_name, self._by_lower_suffix = defaultdict(list), defaultdict(list)
        for path in self.paths:
            name = os.path.basename(path)
            self._by_name[name].append(path)
            self._by_lower_suffix[_lower_suffix(name)].append(path)
            self._by_name[os.path.splitext(name)[0]].append(path)

    @classmethod
    def in_folder(cls, root: str) -> "Images":
        """Find all images in a folder and its subfolders.

        Raises:
            AIDError: the folder does not exist or has no image, or one is no regular file.
        """
        if not os.path.isdir(root):
            raise AIDError(f"--images {root} is no folder: name the folder of the images")
        paths = [x for x in files_below(root) if x.lower().endswith(IMAGES)]
        _check_regular(paths)
        if not paths:
            raise AIDError(f"{root} has no image: name the folder of the images by --images")
        return cls(root, paths)

    def split_of(self, path: str) -> str | None:
        """Split of an image according to the folders that it is in."""
        return _split_of(os.path.relpath(path, self.root))

    def has(self, name: str) -> bool:
        """Whether an image has the file name, with or without extension."""
        return name in self._by_name

    def find(self, name: str, source: str, split: str | None = None) -> str | None:
        """Find an image by its name.

        Among images of equal names it is the one whose folders agree most with those of the name,
        at their end or else at their start. The extension may be in another case if no image has it
        as it is.

        Args:
            name: with or without extension and folders.
            source: label file, for messages.
            split: images in a folder of another split are left out.

        Returns:
            Path of the image; None if there is none.

        Raises:
            AIDError: several images have the name.
        """
        *folders, base = _parts(name)
        named = self._by_name.get(base) or self._by_lower_suffix.get(_lower_suffix(base), ())
        found = [x for x in named if not split or self.split_of(x) in (None, split)]
        own_folders = [_parts(os.path.relpath(x, self.root))[:-1] for x in found]
        agreement = [
            (_num_equal(folders[::-1], x[::-1]), _num_equal(folders, x)) for x in own_folders
        ]
        best = [x for x, n in zip(found, agreement, strict=True) if n == max(agreement)]
        if len(best) > 1:
            raise AIDError(f"{source}: image {name} may be {best[0]} or {best[1]}: rename one")
        if best and folders and own_folders[found.index(best[0])]:
            at_end, at_start = max(agreement)
            if not at_end and at_start < len(folders):
                self.elsewhere[name] = best[0]
        return best[0] if best else None

    def of_files(self, files: LabelFiles, names: dict[str, str | None]) -> dict[str, str]:
        """Find the images of label files, which have the same name or the one given.

        Args:
            files: all label files.
            names: {label file: other name of its image, or None}.

        Returns:
            {label file: path of its image}

        Raises:
            AIDError: images are missing.
        """
        found = {}
        for path, other in names.items():
            name = os.path.splitext(os.path.relpath(path, files.root))[0]
            split = files.split_of(path)
            found[path] = self.find(name, path, split) or (
                self.find(files.beside(path, other), path, split) if other else None
            )
        check_found(found, self)
        return found


def find_split(
    files: LabelFiles, images: Images, path: str, image: str, ignored: str = ""
) -> str | None:
    """Split of an image according to lists, the folder of its label file, or its own folder.

    Args:
        files, images: all label files and images.
        path: label file of the image.
        image: path of the image.
        ignored: split that folders do not tell.

    Returns:
        "train", "val" or "test"; None if the data do not say.
    """
    of_folder = files.split_of(path) or images.split_of(image)
    return _listed_split(files, images, image) or (None if of_folder == ignored else of_folder)


def _listed_split(files: LabelFiles, images: Images, image: str) -> str | None:
    return next((files.listed[x] for x in _names(image, images) if x in files.listed), None)


def _names(image: str, images: Images) -> list[str]:
    """Names that a list may give an image: with and without folders and extension."""
    parts = _parts(os.path.relpath(image, images.root))
    names = ["/".join(parts[i:]) for i in range(len(parts))]
    return [x for name in names for x in (_lower_suffix(name), os.path.splitext(name)[0])]


def _lower_suffix(name: str) -> str:
    """Name with the extension of an image in lower case."""
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower() if suffix.lower() in IMAGES else name


def count_unlabeled(files: LabelFiles, images: Images, labels: Labels) -> None:
    """Count images that have no labels, in ``labels.left_out``.

    Test images are not counted: datasets often come without the labels of their test.
    """
    labeled = {x.path for x in labels.images}
    without = [x for x in images.paths if x not in labeled]
    splits = ((_listed_split(files, images, x), images.split_of(x)) for x in without)
    number = sum("test" not in x for x in splits)
    if number:
        labels.left_out["images without labels"] = number


def apply_lists(files: LabelFiles, images: Images, labels: Labels) -> None:
    """Leave out images of which neither the lists in ImageSets nor folders say a split.

    If there is no list for training, they stay: it has all images that the other lists do not name.
    Images that are left out, and names of the lists that no labeled image has, are counted in
    ``labels.left_out``.

    Raises:
        AIDError: no name in the lists of train and val is one of a labeled image.
    """
    labeled = {x.path for x in labels.images}
    names = {name for path in labeled for name in _names(path, images)}
    listed = [x for x, split in files.listed.items() if split != "test"]
    unknown = [x for x in listed if x not in names]
    if labeled and unknown and len(unknown) == len(listed):
        raise AIDError(
            f"the lists in ImageSets name none of the {len(labeled)} labeled images in "
            f"{files.root}, first {unknown[0]}: correct or remove them"
        )
    if unknown:
        what = f"names in ImageSets that no labeled image has (first {unknown[0]})"
        labels.left_out[what] = len(unknown)
    if "train" in files.listed.values():
        named = [x for x in labels.images if x.split]
        if len(named) < len(labels.images):
            what = "images that the lists in ImageSets do not name"
            labels.left_out[what] = len(labels.images) - len(named)
        labels.images = named


def check_found(found: dict[str, str | None], images: Images) -> None:
    """Check that images were found.

    Args:
        found: {where an image is named: its path, or None}.
        images: the images that were searched.

    Raises:
        AIDError: some were not.
    """
    missing = [name for name, image in found.items() if image is None]
    if missing:
        raise AIDError(
            f"{len(missing)} of {len(found)} labeled images are not below {images.root}, first "
            f"that of {missing[0]}: complete them, or name their folder by --images"
        )


def _check_regular(paths: list[str]) -> None:
    """Check that no path is a pipe, device or socket, which a reader would wait for."""
    for path in paths:
        if os.path.exists(path) and not os.path.isfile(path):
            raise AIDError(f"{path} is no regular file: remove it, or name another folder")


def _split_of(path: str) -> str | None:
    return next(filter(None, map(split_named, path.split(os.sep)[:-1])), None)


def split_named(folder: str) -> str | None:
    """Split that a folder is named after, such as val2017; None if it is not."""
    return SPLIT_NAMES.get(re.sub(r"[-_]?\d{4}$", "", folder.lower()))


def _parts(name: str) -> list[str]:
    parts = [x for x in name.replace("\\", "/").split("/") if x not in ("", ".", "..")]
    return [*(x for x in parts[:-1] if x.lower() not in ROLES), *parts[-1:]] or [""]


def _num_equal(a: list[str], b: list[str]) -> int:
    """Number of elements that are equal from the start on."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def read_text(path: str) -> str:
    """Read a text file, with or without byte-order mark.

    Raises:
        AIDError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as error:
        raise AIDError(f"{path} cannot be read as text: {error}") from error


def read_json(path: str) -> object:
    """Read a JSON file.

    Raises:
        AIDError: it cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise AIDError(f"{path} is not a whole JSON file: {error}") from error


def read_xml(path: str) -> ElementTree.Element:
    """Read the root of an XML file.

    Raises:
        AIDError: it cannot be read.
    """
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:
        raise AIDError(f"{path} is not a whole XML file: {error}") from error


def split_in_name(path: str) -> str | None:
    """Split that the words of a file's name say, such as of instances_train2017.json."""
    words = re.findall(r"[a-z]+", os.path.basename(path).lower())
    return next((SPLIT_NAMES[x] for x in words if x in SPLIT_NAMES), None)
