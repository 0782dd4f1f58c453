"""KITTI's official metric on text files, and its formatting."""

import os
import textwrap

from detectron2.structures import Instances
from tabulate import tabulate
from tqdm import tqdm

from ..data.kitti_labels import KITTIObject, parse_label_file
from ..utils.errors import AIDError
from .kitti_metric import DIFFICULTIES, NUM_POSITIONS, AveragePrecision, kitti_average_precision

__all__ = ["as_dict", "evaluate_folders", "format_table", "kitti_objects", "note_on_few_objects"]

Results = dict[str, dict[str, AveragePrecision]]
# Characters of a line of the table on a terminal.
WIDTH = 100


def evaluate_folders(labels: str, results: str) -> Results:
    """Evaluate result files by KITTI's official metric.

    Images without a result file are skipped; an empty result file means no detections.

    Args:
        labels: folder of label files, such as training/label_2.
        results: folder of result files with the same names.

    Raises:
        AIDError: a folder is missing or empty, a result file has no label file, or a line is
            malformed.
    """
    names = {}
    for folder in (labels, results):
        if not os.path.isdir(folder):
            raise AIDError(f"folder {folder} does not exist")
        names[folder] = sorted(x for x in os.listdir(folder) if x.endswith(".txt"))
        if not names[folder]:
            raise AIDError(f"folder {folder} holds no .txt file: expected KITTI's 000000.txt, ...")
    extra = sorted(set(names[results]) - set(names[labels]))
    if extra:
        raise AIDError(
            f"{os.path.join(results, extra[0])} has no label file in {labels} ({len(extra)} such "
            "results): results and labels must be of the same images"
        )
    return kitti_average_precision(
        (
            parse_label_file(os.path.join(labels, name)),
            parse_label_file(os.path.join(results, name), with_score=True),
        )
        for name in tqdm(names[results], desc="Reading", unit="image")
    )


def kitti_objects(detections: Instances, classes: list[str]) -> list[KITTIObject]:
    """Convert detections to the objects of a result file.

    Args:
        detections: of one image, in its pixels, on the CPU.
        classes: names of the classes.
    """
    rows = zip(
        detections.pred_classes.tolist(),
        detections.pred_boxes.tensor.tolist(),
        detections.scores.tolist(),
        strict=True,
    )
    return [
        KITTIObject(classes[category], -1, -1, tuple(box), score, line)
        for line, (category, box, score) in enumerate(rows)
    ]


def as_dict(precision: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Convert to {class: {"AP_R40": {difficulty: percent}, "AP_R11": ...}}, unrounded."""
    return {
        name: {
            "AP_R40": {difficulty: x.r40 for difficulty, x in by_difficulty.items()},
            "AP_R11": {difficulty: x.r11 for difficulty, x in by_difficulty.items()},
        }
        for name, by_difficulty in precision.items()
    }


def format_table(precision: Results) -> str:
    """Format as a Markdown table, with a note if an AP cannot reach 100.

    Without a ground-truth object there is no AP, which is shown as "-".
    """
    rows, num_valid = [], {}
    for name, by_difficulty in precision.items():
        for difficulty in DIFFICULTIES:
            x = by_difficulty[difficulty]
            aps = [f"{ap:.2f}" if x.num_valid else "-" for ap in (x.r40, x.r11)]
            rows.append([name, difficulty, *aps, x.num_valid])
            num_valid[f"{name} {difficulty}"] = x.num_valid
    header = ["class", "difficulty", "AP_R40", "AP_R11", "objects"]
    right = ["left", "left", "right", "right", "right"]
    table = tabulate(rows, header, tablefmt="pipe", colalign=right, disable_numparse=True)
    note = textwrap.fill(note_on_few_objects(num_valid), WIDTH)
    return "\n".join(filter(None, [table, note]))


def note_on_few_objects(num_valid: dict[str, int]) -> str:
    """Describe the cases in which even a perfect detector has an AP below 100; "" if none.

    Args:
        num_valid: {case: number of ground-truth objects}.
    """
    few = [f"{name}: {n}" for name, n in num_valid.items() if n < NUM_POSITIONS]
    if not few:
        return ""
    return (
        f"Fewer than {NUM_POSITIONS} objects ({'; '.join(few)}): there even a perfect detector "
        "stays below 100."
    )
