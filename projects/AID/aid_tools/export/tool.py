"""Work of tools/export_model.py: export, comparison, quantization, measurement and table."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from aid import Predictor
from aid.data.classes import class_list
from aid.data.images import ImageFault, check_header, longest_side
from aid.engine.setup import check_dataset
from aid.inference import as_input
from aid.modeling.teacher import build_teacher
from aid.modeling.teacher_keys import DETECTOR, teacher_kinds
from aid.utils.errors import AIDError, check_not_negative
from aid.utils.files import whole_file, write_json, write_text

from ..prediction import Source, find_sources, read_frames
from .accuracy import average_precision, check_drop
from .comparison import TOLERANCE, compare_detections
from .contract import contract
from .formats import FILES, INT8, TITLES, export, load_exported
from .measure import Row, latencies, num_parameters, size_of_weights, table
from .quantization import quantized

__all__ = ["check_int8", "check_labels", "export_and_compare"]

# Largest number of images whose activations set the scales of INT8, as --help says.
MAX_CALIBRATION = 200


def check_int8(args: Namespace) -> None:
    """Check the options of the quantization.

    Raises:
        AIDError: an option is missing or invalid, there are no images, or one cannot be read.
    """
    if "onnx" not in args.format:
        raise AIDError("--int8 quantizes the ONNX file: add onnx to --format")
    if not args.calibrate:
        raise AIDError("--int8 needs images like those of the training: add --calibrate FOLDER")
    check_not_negative("--max-ap-drop", args.max_ap_drop)
    for source in _some(find_sources(args.calibrate), MAX_CALIBRATION):
        if not os.path.isfile(source.path):
            raise AIDError(f"--calibrate {source.path} does not exist")
        if not source.is_video:
            try:
                check_header(source.path)
            except ImageFault as error:
                raise AIDError(f"--calibrate {source.path} cannot be used: {error}") from error


def _dataset(args: Namespace, cfg: CfgNode) -> str | None:
    return args.evaluate or next(iter(cfg.DATASETS.TEST), None)


def check_labels(args: Namespace, predictor: Predictor) -> None:
    """Check before the export that the AP of the quantized file can be measured.

    Raises:
        AIDError: no dataset is named, or it has other classes than the detector.
    """
    dataset = _dataset(args, predictor.cfg)
    if dataset is None:
        raise AIDError("--int8 needs labels to measure AP: add --evaluate DATASET")
    check_dataset(predictor.cfg, "TEST", dataset)
    names = class_list(dataset)
    if names is not None and names != predictor.class_names:
        raise AIDError(
            f"--int8: the classes of {dataset} are {', '.join(names)}, those of the detector "
            f"{', '.join(predictor.class_names)}: add --evaluate with a dataset of its classes"
        )


def export_and_compare(args: Namespace, predictor: Predictor) -> None:
    """Write the files, and the table of their latency and size, to the output folder.

    Args:
        args: of tools/export_model.py.
        predictor: the detector.

    Raises:
        AIDError: a file cannot be exported, its detections differ from the detector's, or the AP of
            the quantized file is too low.
    """
    cfg, detector = predictor.cfg, predictor.model
    pictures = list(_pictures(args, cfg))
    images = [as_input(picture, cfg)["image"].float() for picture in pictures]
    teachers = [] if args.no_teacher else _teachers(cfg, pictures[0])
    forms = [*teachers, _eager("student" if teachers else "detector", detector, images[0])]
    files = {kind: _export(kind, detector, images, args) for kind in dict.fromkeys(args.format)}
    write_json(os.path.join(args.output, "contract.json"), contract(predictor))
    if args.int8:
        files |= _quantize(files["onnx"], cfg, images[0], args)
    forms += files.values()
    times = latencies([run for _, run in forms], args.repeat)
    rows = [replace(row, milliseconds=ms) for (row, _), ms in zip(forms, times, strict=True)]
    setting = (
        f"{'x'.join(map(str, images[0].shape[1:]))} pixels, one image at a time, CPU, threads: "
        f"{args.threads}, median of {args.repeat} runs, torch {torch.__version__}"
    )
    if args.int8:
        setting += f"; AP on {_dataset(args, cfg)}"
    page = f"{setting}\n\n{table(rows)}\n"
    print(page)
    write_text(os.path.join(args.output, "export.md"), page)
    measured = {"setting": setting, "tolerance": TOLERANCE, "rows": [asdict(row) for row in rows]}
    write_json(os.path.join(args.output, "export.json"), measured)


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


def _quantize(
    form: tuple[Row, Callable], cfg: CfgNode, image: torch.Tensor, args: Namespace
) -> dict[str, tuple[Row, Callable]]:
    """Quantize the ONNX file; returns its row and that of the result, with their AP."""
    row, timed = form
    path = os.path.join(args.output, FILES["onnx"])
    pictures = _frames(args.calibrate, cfg, MAX_CALIBRATION)
    content = quantized(path, (as_input(x, cfg)["image"].float() for x in pictures))
    dataset = _dataset(args, cfg)
    run = load_exported(content, "onnx", args.threads)
    exported = load_exported(path, "onnx", args.threads)
    before = average_precision(exported, cfg, dataset, row.name)
    after = average_precision(run, cfg, dataset, "ONNX, INT8")
    check_drop(before, after, args.max_ap_drop, dataset)
    with whole_file(os.path.join(args.output, INT8)) as f:
        f.write(content)
    int8 = Row("ONNX, INT8", len(content) / 1e6, row.parameters, ap=after)
    return {"onnx": (replace(row, ap=before), timed), "int8": (int8, partial(run, image))}


def _pictures(args: Namespace, cfg: CfgNode) -> Iterator[np.ndarray]:
    """Read the images of the comparison, (H, W, 3), BGR; the first one is also timed."""
    if args.images:
        return _frames(args.images, cfg, args.num_images)
    dataset = _dataset(args, cfg)
    if dataset in DatasetCatalog.list():
        check_dataset(cfg, "TEST", dataset)
        names = [x["file_name"] for x in DatasetCatalog.get(dataset)]
        return _frames(names[: args.num_images], cfg, args.num_images)
    raise AIDError("no dataset of DATASETS.TEST is registered: add --images IMAGE ...")


def _frames(inputs: list[str], cfg: CfgNode, number: int) -> Iterator[np.ndarray]:
    """Read at most ``number`` images, (H, W, 3), BGR, evenly spaced over the files."""
    sources = _some(find_sources(inputs), number)
    frames = read_frames(sources, _fail, longest_side(cfg, is_train=False))
    return (frame.image for frame in islice(frames, number))


def _some(sources: list[Source], number: int) -> list[Source]:
    """Take at most ``number`` of the files, evenly spaced."""
    return sources[:: -(-len(sources) // number)]


def _fail(message: str) -> None:
    raise AIDError(f"{message}: the export needs readable images")


def _teachers(cfg: CfgNode, picture: np.ndarray) -> list[tuple[Row, Callable]]:
    """Build the teachers that the config names, if it is the config of a student."""
    teachers = []
    for number, kind in enumerate(teacher_kinds(cfg) if cfg.TEACHER.CONFIG_FILE else ()):
        if kind != DETECTOR:
            continue
        teacher = build_teacher(cfg, number)
        sample = as_input(picture, teacher.cfg)
        name = f"teacher {number + 1}" if number else "teacher"
        teachers.append(_eager(name, teacher.detector, sample["image"].float()))
    return teachers


def _eager(name: str, detector: nn.Module, image: torch.Tensor) -> tuple[Row, Callable]:
    row = Row(name, size_of_weights(detector), num_parameters(detector))
    return row, partial(detector, [{"image": image}])
