#!/usr/bin/env python3
"""Export a trained detector to TorchScript and ONNX, compare the files, and time them.

    python tools/export_model.py --config-file output/student --output output/export
    python tools/export_model.py --config-file output/student --output output/export \\
        --format onnx --int8 --calibrate TRAINING_IMAGES
    python tools/export_model.py --config-file output/student --output output/export \\
        --baselines output/plain --evaluate kitti_val

Each file is run on images of the config's test set or of --images, and rejected if its detections
differ from the detector's. The files take images of any size, on the CPU. --int8 adds a quantized
ONNX file, which is rejected if its AP is too low. The folder also gets contract.json, which
describes inputs, outputs and classes for programs that run the files, and a table of parameters,
GFLOPs, sizes and latencies as export.md and export.json, with AP by --evaluate. See docs/deploy.md.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import (
    add_detector,
    add_output,
    add_overrides_option,
    add_register,
    make_parser,
)
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_detector(parser)
    add_output(parser, "folder of the exported files")
    add(
        "--format",
        nargs="+",
        choices=("trace", "onnx"),
        default=["trace", "onnx"],
        help="formats to export: TorchScript by tracing, or ONNX (default: both)",
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
    add(
        "--baselines",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="output folders of detectors to add to the table, such as the plain student's",
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
        default=1,
        metavar="N",
        help="number of CPU threads (default: %(default)s)",
    )
    add("--int8", action="store_true", help="also quantize the ONNX file to 8 bits")
    add(
        "--calibrate",
        nargs="+",
        metavar="INPUT",
        help="images for --int8, like those of the training; at most 200 are used",
    )
    add(
        "--evaluate",
        metavar="DATASET",
        help="measure the AP of all rows on this registered dataset (default: that of --int8 and "
        "its ONNX file, on the first of DATASETS.TEST)",
    )
    add(
        "--max-ap-drop",
        type=float,
        default=1.0,
        metavar="AP",
        help="largest loss of AP with which the file of --int8 is kept, in points of an AP of 0 to "
        "100 (default: %(default)s); a file whose AP is 0 is never kept",
    )
    add_register(parser)
    add_overrides_option(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    import torch

    from aid import Predictor
    from aid.data import register_from_file
    from aid.utils.errors import AIDError
    from aid_tools.export import check_packages
    from aid_tools.export.tool import (
        check_int8,
        check_labels,
        check_output,
        export_and_compare,
    )
    from aid_tools.files import output_folder

    if min(args.num_images, args.repeat, args.threads) < 1:
        raise AIDError("--num-images, --repeat and --threads must be at least 1")
    if args.int8:
        check_int8(args)
    elif args.calibrate:
        raise AIDError("--calibrate is an option of --int8: add it")
    check_output(args)
    check_packages(args.format)
    if args.register:
        register_from_file(args.register)
    torch.set_num_threads(args.threads)
    predictor = Predictor(args.config_file, args.weights, "cpu", args.opts)
    baselines = [Predictor(folder, device="cpu") for folder in args.baselines]
    if args.int8 or args.evaluate:
        for x in (predictor, *baselines):
            check_labels(args, x)
    with output_folder(args.output):
        export_and_compare(args, predictor, baselines)


if __name__ == "__main__":
    main()
