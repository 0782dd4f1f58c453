"""Reading and writing of KITTI's label and result files.

A line is an object, with the fields of KITTI's object development kit: type, truncation, occlusion,
alpha, the box x1 y1 x2 y2 in pixels, then size, location and rotation in 3D. Results have the score
as field 16.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..utils.errors import AIDError
from ..utils.files import whole_file
from ..utils.text import counted

__all__ = ["CLASSES", "IGNORED_AS", "KITTIObject", "parse_label_file", "write_result_file"]

# Classes of the benchmark, in the order of their category ids.
CLASSES = ("Car", "Pedestrian", "Cyclist")
# {other type in the labels: classes whose detections on it are ignored}.
IGNORED_AS = {
    "Van": ("Car",),
    "Person_sitting": ("Pedestrian",),
    "Truck": CLASSES,
    "Tram": CLASSES,
    "Misc": CLASSES,
    "DontCare": CLASSES,
}
_TYPES = {name.lower(): name for name in (*CLASSES, *IGNORED_AS)}
_NUM_FIELDS = 15


@dataclass(frozen=True)
class KITTIObject:
    """Object in a label or result file.

    Attributes:
        type: one of :data:`CLASSES` or of the keys of :data:`IGNORED_AS`, or of the types that
            :func:`parse_label_file` was given.
        truncated: share of the object outside of the image, 0 to 1; -1 if unknown, as in results.
        occluded: 0 fully visible, 1 partly occluded, 2 largely occluded, 3 unknown; -1 if not
            labeled, as in results.
        bbox: x1, y1, x2, y2 in pixels, counted from 0.
        score: of a detection; None for ground truth.
        line: in the file, counted from 0.
    """

    type: str
    truncated: float
    occluded: int
    bbox: tuple[float, float, float, float]
    score: float | None
    line: int


def parse_label_file(
    path: str, with_score: bool = False, types: Mapping[str, str] = _TYPES
) -> list[KITTIObject]:
    """Parse a label or result file.

    Args:
        path: of the text file. Types are case-insensitive, as in KITTI's development kit.
        with_score: whether the lines have a score as field 16.
        types: {type in lower case: type}, by default KITTI's.

    Raises:
        AIDError: the file cannot be read, or a line is malformed.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = f.read().split("\n")
    except FileNotFoundError:
        raise AIDError(f"label file {path} does not exist: every listed image needs one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AIDError(f"label file {path} cannot be read as text: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    objects = []
    for number, line in enumerate(lines):
        try:
            objects.append(_parse_line(line, with_score, number, types))
        except ValueError as error:
            raise AIDError(f"{path}, line {number + 1}: {error}") from None
    return objects


def _parse_line(line: str, with_score: bool, number: int, types: Mapping[str, str]) -> KITTIObject:
    fields = line.split()
    expected = _NUM_FIELDS + with_score
    if len(fields) != expected:
        hint = ""
        if {len(fields), expected} == {_NUM_FIELDS, _NUM_FIELDS + 1}:
            hint = " (results have a score as field 16, labels do not)"
        raise ValueError(f"{counted(len(fields), 'field')} where KITTI has {expected}{hint}")
    kind = types.get(fields[0].lower())
    if kind is None:
        known = ", ".join(types.values())
        if types is not _TYPES:
            raise ValueError(f"unknown type {fields[0]!r}: the dataset has {known}")
        raise ValueError(f"unknown type {fields[0]!r}: KITTI has {known}; call other objects Misc")
    numbers = [_parse_number(field, i) for i, field in enumerate(fields[1:], start=2)]
    truncated, occluded, _, *bbox = numbers[:7]
    x1, y1, x2, y2 = bbox
    if with_score:
        if x2 < x1 or y2 < y1:
            raise ValueError(f"box {' '.join(fields[4:8])} is inverted: it must be x1 y1 x2 y2")
        return KITTIObject(kind, -1, -1, tuple(bbox), numbers[14], number)
    if truncated != -1 and not 0 <= truncated <= 1:
        raise ValueError(f"truncation {fields[1]} is neither within 0 to 1 nor -1")
    if occluded not in (-1, 0, 1, 2, 3):
        raise ValueError(f"occlusion {fields[2]} is not one of -1, 0, 1, 2, 3")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"box {' '.join(fields[4:8])} is empty: it must be x1 y1 x2 y2")
    return KITTIObject(kind, truncated, int(occluded), tuple(bbox), None, number)


def _parse_number(field: str, position: int) -> float:
    try:
        number = float(field)
    except ValueError:
        number = math.nan
    # Python accepts 1_000 and digits of other scripts, KITTI's development kit does not.
    if not math.isfinite(number) or "_" in field or not field.isascii():
        raise ValueError(f"field {position} is {field!r}, not a finite number")
    return number


def write_result_file(path: str, objects: list[KITTIObject]) -> None:
    """Write detections to a result file, in full precision.

    Unknown fields have the values of KITTI's development kit: truncation, occlusion and size -1,
    alpha and rotation -10, location -1000.
    """
    with whole_file(path, sync=False) as f:
        for x in objects:
            box = " ".join(map(repr, x.bbox))
            line = f"{x.type} -1 -1 -10 {box} -1 -1 -1 -1000 -1000 -1000 -10 {x.score!r}\n"
            f.write(line.encode())
