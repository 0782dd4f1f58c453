#!/usr/bin/env python3
"""Export a trained detector to TorchScript and ONNX, compare the files, and time them.

    python tools/export_model.py --config-file output/.../config.yaml \\
        --weights output/.../model_final.pth --output output/export

Each file is run on images of the config's test set or of --images, and rejected if its detections
differ from the detector's. The files take images of any size, on the CPU. The folder also gets
export.json, which describes inputs and outputs, and export.md, the table of latency and size.
See docs/deploy.md.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import (
    add_config_file,
    add_output,
    add_overrides_option,
    add_register,
    add_weights,
    make_parser,
)
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config_file(parser, "config file, or a name in Detectron2's model zoo")
    add_weights(parser, "checkpoint of the detector (default: MODEL.WEIGHTS of the config)")
    add_output(parser, "folder of the exported files")
    add(
        "--format",
        nargs="+",
        choices=("trace", "script", "onnx"),
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
        metavar="N",
        help="number of CPU threads (default: torch's choice)",
    )
    add_register(parser)
    add_overrides_option(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    import torch

    from aid.data import register_from_file
    from aid.utils.errors import AIDError
    from aid.utils.files import output_folder
    from aid_tools.export import check_packages
    from aid_tools.export.tool import export_and_compare
    from aid_tools.prediction import load_config_of

    if args.threads is None:
        args.threads = torch.get_num_threads()
    if min(args.num_images, args.repeat, args.threads) < 1:
        raise AIDError("--num-images, --repeat and --threads must be at least 1")
    check_packages(args.format)
    if args.register:
        register_from_file(args.register)
    torch.set_num_threads(args.threads)
    cfg = load_config_of(args.config_file, args.weights, "cpu", args.opts)
    with output_folder(args.output):
        export_and_compare(args, cfg)


if __name__ == "__main__":
    main()
