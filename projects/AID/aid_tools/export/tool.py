"""Work of tools/export_model.py: export, comparison, measurement and table."""

import json
import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from aid.data.images import longest_side
from aid.engine.setup import check_dataset
from aid.modeling.teacher import build_teacher, num_teachers
from aid.utils.errors import AIDError
from aid.utils.files import write_text

from ..prediction import as_input, classes_of, find_sources, load_detector, read_frames
from .comparison import TOLERANCE, compare_detections
from .deployed import OUTPUTS
from .formats import FILES, TITLES, export, load_exported
from .measure import Row, latencies, num_parameters, size_of_weights, table

__all__ = ["export_and_compare"]


def export_and_compare(args: Namespace, cfg: CfgNode) -> None:
    """Write the files, and the table of their latency and size, to the output folder.

    Args:
        args: of tools/export_model.py.
        cfg: of the detector, see :func:`~aid_tools.prediction.load_config_of`.

    Raises:
        AIDError: a file cannot be exported, or its detections differ from the detector's.
    """
    detector = load_detector(cfg)
    pictures = _pictures(args, cfg)
    images = [as_input(picture, cfg)["image"].float() for picture in pictures]
    teachers = [] if args.no_teacher else _teachers(cfg, pictures[0])
    forms = [*teachers, _eager("student" if teachers else "detector", detector, images[0])]
    forms += [_export(kind, detector, images, args) for kind in dict.fromkeys(args.format)]
    times = latencies([run for _, run in forms], args.repeat)
    rows = [replace(row, milliseconds=ms) for (row, _), ms in zip(forms, times, strict=True)]
    setting = (
        f"{'x'.join(map(str, images[0].shape[1:]))} pixels, one image at a time, CPU, threads: "
        f"{args.threads}, median of {args.repeat} runs, torch {torch.__version__}"
    )
    page = f"{setting}\n\n{table(rows)}\n"
    print(page)
    write_text(os.path.join(args.output, "export.md"), page)
    measured = {"setting": setting, "rows": [asdict(row) for row in rows]}
    content = json.dumps({**_feeding(cfg), **measured}, indent=1)
    write_text(os.path.join(args.output, "export.json"), content)


def _export(
    kind: str, detector: nn.Module, images: list[torch.Tensor], args: Namespace
) -> tuple[Row, Callable]:
    """Write a file and compare it; returns its row of the table, and a function to time."""
    path = os.path.join(args.output, FILES[kind])
    export(detector, kind, images[0], path)
    run = load_exported(path, kind, args.threads)
    try:
        difference = compare_detections(run, detector, images, path)
    except AIDError:
        os.remove(path)  # leave no file behind that failed the comparison
        raise
    size = os.path.getsize(path) / 1e6
    row = Row(TITLES[kind], size, num_parameters(detector), difference)
    return row, partial(run, images[0])


def _pictures(args: Namespace, cfg: CfgNode) -> list[np.ndarray]:
    """Read the images of the comparison, (H, W, 3), uint8; the first one is also timed."""
    if args.images:
        sources = find_sources(args.images)
    elif cfg.DATASETS.TEST and cfg.DATASETS.TEST[0] in DatasetCatalog.list():
        check_dataset(cfg, "TEST", cfg.DATASETS.TEST[0])
        names = [x["file_name"] for x in DatasetCatalog.get(cfg.DATASETS.TEST[0])]
        sources = find_sources(names[: args.num_images])
    else:
        raise AIDError("no dataset of DATASETS.TEST is registered: add --images IMAGE ...")
    longest = longest_side(cfg, is_train=False)
    frames = read_frames(sources, cfg.INPUT.FORMAT, _fail, longest)
    return [frame.image for frame in islice(frames, args.num_images)]


def _fail(message: str) -> None:
    raise AIDError(f"{message}: the comparison needs readable images")


def _teachers(cfg: CfgNode, picture: np.ndarray) -> list[tuple[Row, Callable]]:
    """Build the teachers that the config names, if it is the config of a student."""
    teachers = []
    for number in range(num_teachers(cfg) if cfg.TEACHER.CONFIG_FILE else 0):
        teacher = build_teacher(cfg, number)
        if not teacher.has_heads:
            continue
        same = teacher.cfg.INPUT.FORMAT == cfg.INPUT.FORMAT
        sample = as_input(picture if same else picture[:, :, ::-1], teacher.cfg)
        name = f"teacher {number + 1}" if number else "teacher"
        teachers.append(_eager(name, teacher.detector, sample["image"].float()))
    return teachers


def _eager(name: str, detector: nn.Module, image: torch.Tensor) -> tuple[Row, Callable]:
    row = Row(name, size_of_weights(detector), num_parameters(detector))
    return row, partial(detector, [{"image": image}])


def _feeding(cfg: CfgNode) -> dict:
    """Describe inputs and outputs of the files for programs that run them."""
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    return {
        "input": {"shape": [3, "height", "width"], "channels": cfg.INPUT.FORMAT, **sizes},
        "outputs": list(OUTPUTS) if cfg.MODEL.MASK_ON else list(OUTPUTS[:3]),
        "classes": classes_of(cfg)[0],
        "tolerance": TOLERANCE,
    }
