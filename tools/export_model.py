#!/usr/bin/env python3
"""Export a trained detector to TorchScript and ONNX, compare the files, and time them.

    python tools/export_model.py --config-file output/.../config.yaml \\
        --weights output/.../model_final.pth --output output/export

Each file is run on images of the config's test set or of --images, and rejected if its detections
differ from the detector's. The files take images of any size, on the CPU. The folder also gets
export.json, which describes inputs and outputs, and export.md, the table of latency and size.
See docs/deploy.md.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from aid import Predictor
from aid.data import register_from_file
from aid.data.images import longest_side
from aid.engine.setup import check_dataset
from aid.inference import as_input
from aid.modeling.teacher import build_teacher, num_teachers
from aid.utils.errors import AIDError, main_with_clear_errors
from aid.utils.files import output_folder, write_text
from aid_tools.arguments import (
    add_detector,
    add_output,
    add_overrides_option,
    add_register,
    make_parser,
)
from aid_tools.export import (
    FILES,
    OUTPUTS,
    TITLES,
    TOLERANCE,
    Row,
    check_packages,
    compare_detections,
    export,
    latencies,
    load_exported,
    num_parameters,
    size_of_weights,
    table,
)
from aid_tools.prediction import find_sources, read_frames


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if min(args.num_images, args.repeat, args.threads) < 1:
        raise AIDError("--num-images, --repeat and --threads must be at least 1")
    check_packages(args.format)
    if args.register:
        register_from_file(args.register)
    torch.set_num_threads(args.threads)
    predictor = Predictor(args.config_file, args.weights, "cpu", args.opts)
    with output_folder(args.output):
        _write(args, predictor)


def _write(args: argparse.Namespace, predictor: Predictor) -> None:
    cfg, detector = predictor.cfg, predictor.model
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
    content = json.dumps({**_feeding(predictor), **measured}, indent=1)
    write_text(os.path.join(args.output, "export.json"), content)


def _export(
    kind: str, detector: nn.Module, images: list[torch.Tensor], args: argparse.Namespace
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


def _pictures(args: argparse.Namespace, cfg: CfgNode) -> list[np.ndarray]:
    """Read the images of the comparison, (H, W, 3), BGR; the first one is also timed."""
    if args.images:
        sources = find_sources(args.images)
    elif cfg.DATASETS.TEST and cfg.DATASETS.TEST[0] in DatasetCatalog.list():
        check_dataset(cfg, "TEST", cfg.DATASETS.TEST[0])
        names = [x["file_name"] for x in DatasetCatalog.get(cfg.DATASETS.TEST[0])]
        sources = find_sources(names[: args.num_images])
    else:
        raise AIDError("no dataset of DATASETS.TEST is registered: add --images IMAGE ...")
    longest = longest_side(cfg, is_train=False)
    frames = read_frames(sources, _fail, longest)
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
        sample = as_input(picture, teacher.cfg)
        name = f"teacher {number + 1}" if number else "teacher"
        teachers.append(_eager(name, teacher.detector, sample["image"].float()))
    return teachers


def _eager(name: str, detector: nn.Module, image: torch.Tensor) -> tuple[Row, Callable]:
    row = Row(name, size_of_weights(detector), num_parameters(detector))
    return row, partial(detector, [{"image": image}])


def _feeding(predictor: Predictor) -> dict:
    """Describe inputs and outputs of the files for programs that run them."""
    cfg = predictor.cfg
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    return {
        "input": {"shape": [3, "height", "width"], "channels": cfg.INPUT.FORMAT, **sizes},
        "outputs": list(OUTPUTS) if cfg.MODEL.MASK_ON else list(OUTPUTS[:3]),
        "classes": predictor.class_names,
        "tolerance": TOLERANCE,
    }


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_detector(parser)
    add_output(parser, "folder of the exported files")
    add(
        "--format",
        nargs="+",
        choices=FILES,
        default=["trace", "onnx"],
        help="formats to export: TorchScript by tracing or by scripting, or ONNX (default: trace "
        "onnx)",
    )
    add(
        "--images",
        nargs="+",
        metavar="INPUT",
        help="images for the comparison (default: those of the test set)",
    )
    add(
        "--num-images",
        type=int,
        default=8,
        metavar="N",
        help="maximum number of images for the comparison (default: %(default)s)",
    )
    add("--no-teacher", action="store_true", help="do not measure the teachers of a student")
    add(
        "--repeat",
        type=int,
        default=50,
        metavar="N",
        help="number of timed runs, of which the median is reported (default: %(default)s)",
    )
    add(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        metavar="N",
        help="number of CPU threads (default: torch's choice, %(default)s on this machine)",
    )
    add_register(parser)
    add_overrides_option(parser)
    return parser


if __name__ == "__main__":
    main()
