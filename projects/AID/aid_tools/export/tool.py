"""Work of tools/export_model.py: export, comparison, quantization, measurement and table."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

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
from aid.modeling.lazy_teacher import UNKNOWN_SIZE
from aid.modeling.teacher import build_teacher
from aid.modeling.teacher_keys import DETECTOR, teacher_kinds
from aid.utils.errors import AIDError, check_not_negative
from aid.utils.files import whole_file, write_text
from aid.utils.text import visible

from ..cost import count_gflops, latencies, num_parameters
from ..files import write_json
from ..prediction import Source, find_sources, read_frames
from .accuracy import average_precision, check_drop
from .comparison import TOLERANCE, compare_detections
from .contract import contract
from .deployed import deployed
from .formats import FILES, INT8, TITLES, exported, load_exported
from .measure import Row, size_of_weights, table
from .quantization import quantized

__all__ = ["check_int8", "check_labels", "check_output", "export_and_compare"]

# Largest number of images whose activations set the scales of INT8, as --help says.
MAX_CALIBRATION = 200
CONTRACT = "contract.json"
# Written by earlier versions.
SCRIPTED = "model_scripted.pt"


@dataclass
class _Form:
    """One form of a detector, a row of the table.

    Attributes:
        row: its row.
        run: function from an image to detections, see :func:`load_exported`.
        timed: function whose time is measured.
        cfg: config with the preprocessing of the images.
    """

    row: Row
    run: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    timed: Callable[[], object]
    cfg: CfgNode

    def evaluate(self, dataset: str) -> None:
        """Add the AP on a dataset to the row, if it is not there yet."""
        if self.row.ap is None:
            ap = average_precision(self.run, self.cfg, dataset, self.row.name)
            self.row = replace(self.row, ap=ap)


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


def check_output(args: Namespace) -> None:
    """Check that the output folder will hold no file of an earlier export beside the new ones.

    Raises:
        AIDError: it has one that this call does not replace.
    """
    written = {FILES[kind] for kind in args.format} | ({INT8} if args.int8 else set())
    for name in {*FILES.values(), INT8, SCRIPTED} - written:
        if os.path.exists(os.path.join(args.output, name)):
            raise AIDError(
                f"--output {args.output} holds {name} of another export: remove it, or choose "
                "another folder"
            )


def _dataset(args: Namespace, cfg: CfgNode) -> str | None:
    return args.evaluate or next(iter(cfg.DATASETS.TEST), None)


def check_labels(args: Namespace, predictor: Predictor) -> None:
    """Check before the export that AP can be measured.

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
            f"AP: the classes of {dataset} are {', '.join(names)}, those of the detector "
            f"{', '.join(predictor.class_names)}: add --evaluate with a dataset of its classes"
        )


def export_and_compare(
    args: Namespace, predictor: Predictor, baselines: Sequence[Predictor] = ()
) -> None:
    """Write the files, and the table of their AP, cost and size, to the output folder, and print
    the table and the names of the files.

    Args:
        args: of tools/export_model.py.
        predictor: the detector.
        baselines: detectors of the folders in ``args.baselines``, for the table.

    Raises:
        AIDError: a file cannot be exported, its detections differ from the detector's, or the AP of
            the quantized file is too low.
    """
    cfg, detector = predictor.cfg, predictor.model
    pictures = list(_pictures(args, cfg))
    images = [as_input(picture, cfg)["image"].float() for picture in pictures]
    forms = [] if args.no_teacher else _teachers(cfg, pictures[0])
    name = "student" if forms else "detector"
    if baselines and os.path.isdir(args.config_file):
        name = _folder_name(args.config_file)
    own = _eager(name, detector, cfg, pictures[0])
    for folder, baseline in zip(args.baselines, baselines, strict=True):
        forms.append(_eager(_folder_name(folder), baseline.model, baseline.cfg, pictures[0]))
    # Of an earlier export, if this one fails.
    for file in (*FILES.values(), INT8, CONTRACT, "export.md", "export.json"):
        Path(args.output, file).unlink(missing_ok=True)
    # First, so that no model is without it if a later one fails.
    write_json(os.path.join(args.output, CONTRACT), contract(predictor))
    files = {
        kind: _export(kind, own, detector, images, args) for kind in dict.fromkeys(args.format)
    }
    if args.int8:
        files["int8"] = _quantize(files["onnx"], images[0], args)
    forms += [own, *files.values()]
    if args.evaluate:
        for form in forms:
            form.evaluate(args.evaluate)
    times = latencies([form.timed for form in forms], args.repeat)
    rows = [replace(form.row, milliseconds=ms) for form, ms in zip(forms, times, strict=True)]
    sizes = {row.pixels for row in rows}
    setting = (
        f"{f'{own.row.pixels} pixels, ' if len(sizes) == 1 else ''}one image at a time, CPU, "
        f"threads: {args.threads}, median of {args.repeat} runs, torch {torch.__version__}"
    )
    if args.int8 or args.evaluate:
        setting += f"; AP on {_dataset(args, cfg)}"
    page = f"{setting}\n\n{table(rows)}\n"
    print(page)
    write_text(os.path.join(args.output, "export.md"), page)
    measured = {"setting": setting, "tolerance": TOLERANCE, "rows": [asdict(row) for row in rows]}
    write_json(os.path.join(args.output, "export.json"), measured)
    names = [CONTRACT, *(FILES.get(kind, INT8) for kind in files), "export.md", "export.json"]
    print(visible(f"Written to {args.output}: {', '.join(names)}"))


def _folder_name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


def _export(
    kind: str, own: _Form, detector: nn.Module, images: list[torch.Tensor], args: Namespace
) -> _Form:
    """Compare an export of the detector, whose form is ``own``, and only then write its file."""
    path = os.path.join(args.output, FILES[kind])
    content = exported(detector, kind, images[0])
    run = load_exported(content, kind, args.threads)
    difference = compare_detections(run, detector, images, path)
    with whole_file(path) as f:
        f.write(content)
    size = len(content) / 1e6
    row = replace(own.row, name=TITLES[kind], megabytes=size, difference=difference)
    return _Form(row, run, partial(run, images[0]), own.cfg)


def _quantize(form: _Form, image: torch.Tensor, args: Namespace) -> _Form:
    """Quantize the ONNX file, and compare the AP of both."""
    path = os.path.join(args.output, FILES["onnx"])
    pictures = _frames(args.calibrate, form.cfg, MAX_CALIBRATION)
    content = quantized(path, (as_input(x, form.cfg)["image"].float() for x in pictures))
    run = load_exported(content, "onnx", args.threads)
    row = replace(form.row, name="ONNX, INT8", megabytes=len(content) / 1e6, difference=None)
    int8 = _Form(row, run, partial(run, image), form.cfg)
    dataset = _dataset(args, form.cfg)
    for x in (form, int8):
        x.evaluate(dataset)
    check_drop(form.row.ap, int8.row.ap, args.max_ap_drop, dataset)
    with whole_file(os.path.join(args.output, INT8)) as f:
        f.write(content)
    return int8


def _pictures(args: Namespace, cfg: CfgNode) -> Iterator[np.ndarray]:
    """Read the images of the comparison, (H, W, 3), BGR; the first one is also timed."""
    if args.images:
        return _frames(args.images, cfg, args.num_images)
    dataset = _dataset(args, cfg)
    if dataset in DatasetCatalog.list():
        check_dataset(cfg, "TEST", dataset)
        names = [x["file_name"] for x in DatasetCatalog.get(dataset)]
        return _frames(names[: args.num_images], cfg, args.num_images)
    raise AIDError(
        "no dataset of DATASETS.TEST is registered: add --register FILE, or --images IMAGE ..."
    )


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


def _teachers(cfg: CfgNode, picture: np.ndarray) -> list[_Form]:
    """Build the teachers that the config names, if it is the config of a student.

    One that cannot be built, as where only the student was copied, is left out with a message.
    """
    cfg.TEACHER.DEVICE = cfg.TEACHER.CACHE = ""  # those of the training
    teachers = []
    for number, kind in enumerate(teacher_kinds(cfg) if cfg.TEACHER.CONFIG_FILE else ()):
        if kind != DETECTOR:
            continue
        name = f"teacher {number + 1}" if number else "teacher"
        try:
            teacher = build_teacher(cfg, number)
        except AIDError as error:
            print(f"warning: without a row of the {name}: {error}", file=sys.stderr)
            continue
        if teacher.cfg.INPUT.MIN_SIZE_TEST != UNKNOWN_SIZE:
            teachers.append(_eager(name, teacher.detector, teacher.cfg, picture))
    return teachers


def _eager(name: str, detector: nn.Module, cfg: CfgNode, picture: np.ndarray) -> _Form:
    """Form of a detector that is not exported."""
    sample = {"image": as_input(picture, cfg)["image"].float()}
    row = Row(
        name,
        size_of_weights(detector),
        num_parameters(detector),
        gflops=count_gflops(detector, sample),
        pixels="x".join(map(str, sample["image"].shape[1:])),
    )

    def run(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return deployed(detector)(image)  # on use, since not every teacher can be wrapped

    return _Form(row, run, partial(detector, [sample]), cfg)
