"""Classes of COCO that are those of a dataset by their name or meaning."""

import re
from dataclasses import dataclass

from detectron2.data import MetadataCatalog

from aid.utils.errors import AIDError

__all__ = ["SYNONYMS", "CocoClasses", "find_coco_classes"]

# {name of a class: class of COCO with the same meaning}, in lower case.
SYNONYMS = {
    "pedestrian": "person",
    "people": "person",
    "motorbike": "motorcycle",
    "bike": "bicycle",
    "aeroplane": "airplane",
}


@dataclass(frozen=True)
class CocoClasses:
    """Classes of a dataset, as COCO has them.

    Attributes:
        mapped: {class: its class of COCO}, no class of COCO twice.
        repeated: classes whose class of COCO is that of a mapped one.
        unknown: classes without one.
    """

    mapped: dict[str, str]
    repeated: list[str]
    unknown: list[str]


def find_coco_classes(classes: list[str]) -> CocoClasses:
    """Find the classes of COCO by name, in any spelling, or else by meaning.

    Raises:
        AIDError: COCO has none of the classes.
    """
    names = {_key(x): x for x in MetadataCatalog.get("coco_2017_val").thing_classes}
    known = {**SYNONYMS, **names}
    matches = {x: known[_key(x)] for x in classes if _key(x) in known}
    if not matches:
        raise AIDError(
            f"--teacher coco: COCO has none of the classes {', '.join(classes)}: train a "
            "teacher, or map classes of other names by hand (docs/teachers.md)"
        )
    # Of several classes, the one of equal spelling is mapped, or else one of equal name.
    by_rank = sorted(reversed(matches.items()), key=lambda x: (x[0] == x[1], _key(x[0]) in names))
    chosen = {match: x for x, match in by_rank}
    mapped = {x: match for x, match in matches.items() if chosen[match] == x}
    repeated = [x for x in matches if x not in mapped]
    return CocoClasses(mapped, repeated, [x for x in classes if x not in matches])


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
