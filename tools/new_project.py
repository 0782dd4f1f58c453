#!/usr/bin/env python3
"""Write the files of a project: registration of the data, and configs of teacher and students.

    python tools/new_project.py fleet --data fleet_data --gpus 4
    python tools/new_project.py fleet --data fleet_data --student MobileNetV3L
    python tools/new_project.py fleet --data fleet_data --detector retinanet --teacher coco
    python tools/new_project.py fleet --train-json a.json --val-json b.json --images photos

--data is the output folder of tools/convert_dataset.py. The tool writes the folder fleet with
register.py, data.yaml, teacher.yaml, student.yaml and aid.yaml, and prints the commands that train
the teacher, a plain and a distilled student, compare them, and evaluate the distilled student on
test images if the data have some. See docs/own_data.md.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import make_parser
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("name", metavar="NAME", help="folder to write, whose name is that of the project")
    add("--data", metavar="FOLDER", help="output folder of tools/convert_dataset.py")
    add("--train-json", metavar="FILE", help="training annotations in COCO's format")
    add("--val-json", metavar="FILE", help="validation annotations in COCO's format")
    add("--images", metavar="FOLDER", help="folder of the images of both")
    add(
        "--detector",
        choices=("faster_rcnn", "retinanet", "gfl", "fcos"),
        default="faster_rcnn",
        help="family of teacher and students (default: %(default)s)",
    )
    add(
        "--student",
        choices=("R18", "R50", "MobileNetV3L", "EfficientNetB0", "RegNetY400MF"),
        default="R18",
        help="backbone of the students; the last three have a narrower FPN and heads, too "
        "(default: %(default)s)",
    )
    add(
        "--teacher",
        choices=("own", "coco"),
        default="own",
        help="a detector that is trained on the data first, or a COCO detector of Detectron2's "
        "model zoo (default: %(default)s)",
    )
    add(
        "--epochs",
        type=int,
        metavar="N",
        help="epochs of the students; the teacher has twice as many (default: 12, more on small "
        "datasets to make 1000 iterations)",
    )
    add(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="number of GPUs; 0 for the CPU (default: %(default)s)",
    )
    add(
        "--batch",
        type=int,
        metavar="N",
        help="images per iteration of all GPUs together (default: 8, or the next multiple of the "
        "number of GPUs)",
    )
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.utils.errors import AIDError
    from aid.utils.text import one_line, visible
    from aid_tools.own_data import Project, write_project

    files = (args.train_json, args.val_json, args.images)
    if bool(args.data) == any(files) or (any(files) and not all(files)):
        raise AIDError("give either --data, or --train-json, --val-json and --images")
    if args.data:
        files = tuple(os.path.join(args.data, x) for x in ("train.json", "val.json", "images"))
    test = os.path.join(args.data, "test.json") if args.data else ""
    project = Project(
        args.name,
        *files,
        detector=args.detector,
        student=args.student,
        coco_teacher=args.teacher == "coco",
        epochs=args.epochs,
        gpus=args.gpus,
        batch=args.batch,
        test_json=test if os.path.exists(test) else None,
    )
    commands, warnings = write_project(project, Path(__file__).resolve().parent.parent)
    for line in warnings:
        print(f"warning: {one_line(line)}", file=sys.stderr)
    print("\n".join(map(visible, commands)))


if __name__ == "__main__":
    main()
