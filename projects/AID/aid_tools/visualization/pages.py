"""Writing of the pages and the contact sheet of a student on a dataset."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from torch import Tensor
from tqdm import tqdm

from aid.data.ignore_regions import ignore_boxes
from aid.modeling.losses.attention import spatial_attention
from aid.modeling.losses.functional import standardized
from aid.utils.text import counted

from ..files import output_folder
from .collect import Seen, as_in_first_step, collect
from .contact_sheet import Entry, draw_contact_sheet, entries_of, extremes
from .load import build_student, load_trained
from .page import Picture, draw_page
from .sample import load_sample

__all__ = ["Pages"]

REGIONS = "Dashed boxes: regions that are neither object nor background (INPUT.IGNORE_REGIONS)."


class Pages:
    """Draws the pages and the contact sheet of a student on a dataset.

    Attributes:
        student: student with its teachers. :meth:`write` loads the trained weights after it has
            collected the results before training.
        notes: remarks on content that the pages omit.
    """

    def __init__(self, cfg: CfgNode, dataset: str, weights: str = ""):
        """
        Args:
            cfg: the student's config.
            dataset: name of a registered dataset.
            weights: checkpoint of the student's run; empty to show the untrained student only.

        Raises:
            AIDError: see :func:`build_student`.
        """
        self.cfg = cfg
        self.student = build_student(cfg)
        self.notes: list[str] = []
        self._names = MetadataCatalog.get(dataset).thing_classes
        self._dataset = dataset
        self._weights = weights

    def write(
        self, shown: list[dict], candidates: list[dict], count: int, output: str
    ) -> list[str]:
        """Write a page for each image, and the contact sheet.

        Args:
            shown: records of the images that get a page.
            candidates: records of the images whose instances may appear on the contact sheet.
            count: number of instances in each section of the contact sheet; 0 for no sheet.
            output: output folder.

        Returns:
            Paths of the files.

        Raises:
            AIDError: an image or the checkpoint cannot be read, or the folder cannot be written.
        """
        with output_folder(output):
            return self._write(shown, candidates, count, output)

    def _write(
        self, shown: list[dict], candidates: list[dict], count: int, output: str
    ) -> list[str]:
        with as_in_first_step(self.student.backbone):
            before = [seen for _, seen in self._collect(shown, "Before training")]
        trained = bool(self._weights)
        has_adapters = trained and load_trained(self.student, self._weights)
        self._take_notes(before[0], trained, has_adapters)
        paths = []
        bar = self._collect(shown, "Drawing pages")
        for (sample, after), start, path in zip(bar, before, _paths(shown, output), strict=True):
            if trained and not has_adapters:
                after = [replace(seen, difference=None) for seen in after]
            page = draw_page(self._picture(sample, start, after if trained else None))
            page.save(path)
            paths.append(path)
        if count:
            paths += self._write_contact_sheet(candidates, count, output)
        return paths

    def _collect(self, records: list[dict], title: str) -> Iterator[tuple[dict, list[Seen]]]:
        for record in tqdm(records, desc=title, unit="image"):
            sample = load_sample(self.cfg, record)[0]
            yield sample, collect(self.student, sample, self._attention)

    def _attention(self, features: Tensor) -> Tensor:
        """Spatial attention (N, 1, H, W) of features (N, C, H, W), by the keys of the config."""
        keys = self.cfg.DISTILLATION
        if keys.STANDARDIZE:
            features = standardized(features, torch.ones_like(features[:, :1]))
        return spatial_attention(features, keys.ATTENTION.TEMPERATURE)

    def _rgb(self, sample: dict) -> np.ndarray:
        return convert_image_to_rgb(sample["image"].permute(1, 2, 0), self.cfg.INPUT.FORMAT)

    def _picture(self, sample: dict, before: list[Seen], after: list[Seen] | None) -> Picture:
        instances = sample["instances"]
        regions = ignore_boxes(instances).tensor
        notes = [*self.notes, REGIONS] if len(regions) else self.notes
        size = (
            f"{instances.image_size[1]} x {instances.image_size[0]} pixels at the network's input"
        )
        return Picture(
            title=f"{os.path.basename(sample['file_name'])} of {self._dataset}, {size}",
            image=self._rgb(sample),
            boxes=instances.gt_boxes.tensor,
            classes=[self._names[i] for i in instances.gt_classes.tolist()],
            teachers=self._teachers(),
            granularity=self.cfg.AID.GRANULARITY,
            before=before,
            after=after,
            notes=notes,
            regions=regions,
        )

    def _teachers(self) -> list[str]:
        distillers = self.student.distillers
        titles = []
        for k, distiller in enumerate(distillers, start=1):
            number = f" {k} of {len(distillers)}" if len(distillers) > 1 else ""
            teacher = distiller.teacher
            path = os.path.normpath(teacher.weights if teacher.has_heads else teacher.name)
            titles.append(f"Teacher{number}: {os.path.join(*path.split(os.sep)[-2:])}")
        return titles

    def _take_notes(self, first: list[Seen], trained: bool, has_adapters: bool) -> None:
        if any(seen.difference is None for seen in first):
            names = ", ".join(self.cfg.DISTILLATION.LOSSES)
            self.notes.append(
                f"Without feature differences: none of {names} compares the values of the "
                "student's and the teacher's features."
            )
        elif trained and not has_adapters:
            self.notes.append(
                f"Without the trained student's feature difference: {self._weights} has no "
                "adapters; only checkpoints of a distillation run have them."
            )
        if not has_adapters and any(True for _ in self.student.weighting.buffers()):
            self.notes.append(
                f"{self.cfg.AID.WEIGHTING} uses statistics of training, which are empty here: give "
                "a checkpoint by --weights."
            )
        if self.cfg.AID.NORMALIZE and self.student.weighting.requires_stats:
            self.notes.append(
                "AID.NORMALIZE divides maps by their mean over a batch, which is this "
                "image only; the w of an object is not divided."
            )

    def _write_contact_sheet(self, records: list[dict], count: int, output: str) -> list[str]:
        entries: list[list[Entry]] = [[] for _ in self.student.distillers]
        for sample, seen in self._collect(records, "Searching for extremes"):
            for of_teacher, result in zip(entries, seen, strict=True):
                if result.losses is None:
                    self.notes.append(
                        "Without a contact sheet: AID.GRANULARITY none does not use the loss D."
                    )
                    return []
                of_teacher += entries_of(result, sample, self._names)
        sections = []
        for title, of_teacher in zip(self._teachers(), entries, strict=True):
            least, most = extremes(of_teacher, count)
            total = f"{counted(len(of_teacher), 'object')} in {counted(len(records), 'image')}"
            sections.append((f"{title}: lowest weights among {total}", least))
            sections.append((f"{title}: highest weights", most))
        path = os.path.join(output, "contact_sheet.png")
        shown = {entry.file_name for _, section in sections for entry in section}
        images = {
            record["file_name"]: self._rgb(load_sample(self.cfg, record)[0])
            for record in records
            if record["file_name"] in shown
        }
        title = f"Objects with the lowest and highest imitation weights on {self._dataset}"
        draw_contact_sheet(sections, images, title).save(path)
        return [path]


def _paths(records: Iterable[dict], output: str) -> list[str]:
    """Output path of each image, by its file name; repeated names get a number."""
    paths: dict[str, None] = {}
    for record in records:
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        path, number = os.path.join(output, f"{stem}.png"), 2
        while path in paths:
            path, number = os.path.join(output, f"{stem}_{number}.png"), number + 1
        paths[path] = None
    return list(paths)
