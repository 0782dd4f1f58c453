#!/usr/bin/env python3
"""Detect objects in images and videos with a trained detector, and draw the detections.

    python tools/predict.py --config-file output/student --output output/predictions PHOTOS CLIP.mp4
    python tools/predict.py --config-file COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml \\
        --weights model_final_280758.pkl --output output/predictions 'drives/**/*.png'

Inputs are images, videos, folders of both, and patterns. Writes annotated images and videos to
pictures/, and detections as KITTI text files to kitti/ or in COCO's JSON layout to detections.json.
Images and frames that cannot be read are reported on one line each and skipped, with exit status 1.
See docs/deploy.md.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import (
    add_detector,
    add_device,
    add_output,
    add_overrides_option,
    add_register,
    make_parser,
    score,
)
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="image, video, folder or glob pattern")
    add_detector(parser)
    add_output(parser, "output folder, which must be new or empty")
    add(
        "--format",
        nargs="+",
        choices=("kitti", "coco"),
        default=["coco"],
        help="file formats of the detections (default: coco)",
    )
    add(
        "--score-threshold",
        type=score,
        default=0.4,
        metavar="SCORE",
        help="minimum score of the detections to write and draw; 0 keeps all detections of an "
        "evaluation (default: %(default)s)",
    )
    add("--no-pictures", action="store_true", help="write the detections only, draw no pictures")
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="number of images per forward pass (default: %(default)s)",
    )
    add_device(parser, shown="MODEL.DEVICE of the config, or the CPU without a GPU")
    add_register(parser)
    add_overrides_option(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid import Predictor
    from aid.data import register_from_file
    from aid.utils.errors import AIDError
    from aid.utils.text import counted, visible
    from aid_tools.files import check_empty, check_outside, output_folder
    from aid_tools.prediction import check_names, find_sources
    from aid_tools.prediction.tool import predict_files

    if args.batch_size < 1:
        raise AIDError("--batch-size must be at least 1")
    if args.register:
        register_from_file(args.register)
    sources = find_sources(args.inputs)
    check_names(sources)
    check_outside(args.output, *args.inputs)
    predictor = Predictor(args.config_file, args.weights, args.device, args.opts)
    with output_folder(args.output):
        check_empty(args.output)
        num_frames, num_detections, num_skipped = predict_files(args, predictor, sources)
    facts = [
        counted(num_frames, "image"),
        f"{counted(num_detections, 'detection')} with a score of at least {args.score_threshold:g}",
        *([f"{num_skipped} skipped"] if num_skipped else []),
    ]
    print(f"{', '.join(facts)}: {visible(args.output) if num_frames else 'nothing is written'}")
    if num_skipped:
        sys.exit(1)


if __name__ == "__main__":
    main()
