#!/usr/bin/env python3
"""Update MODEL_ZOO.md from output folders of students that were trained with a teacher.

    python tools/model_zoo.py output/AID/faster_rcnn_R18_from_R101
    python tools/model_zoo.py output/quickstart/*_from_*

Without folders it regenerates the tables, for example after a config was added or removed:

    python tools/model_zoo.py

The tool writes the results of each folder to docs/results/zoo and regenerates the tables. The
config of a row is the one with the run's OUTPUT_DIR. The teacher's AP is that of TEACHER.EVAL_FIRST
or of the run that wrote TEACHER.WEIGHTS; the plain student's AP is that of the run of the config's
base. Both runs are searched next to the folder first. Config keys of the run that differ from the
current config are listed in the row.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import add_register, make_parser
from aid_tools.command import command


def build_parser() -> ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", metavar="FOLDER", help="output folders of train_net.py")
    add(
        "--config",
        metavar="FILE",
        help="config of the run (default: the config with the OUTPUT_DIR of the run)",
    )
    add(
        "--plain",
        metavar="FOLDER",
        help="output folder of the same student without a teacher (default: searched, see above)",
    )
    add_register(parser)
    return parser


@command(build_parser)
def main(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.

    from aid.data import register_from_file
    from aid.utils.errors import AIDError
    from aid.utils.text import visible
    from aid_tools.report.zoo import Zoo

    if len(args.runs) != 1 and (args.config or args.plain):
        raise AIDError("--config and --plain apply to a single folder: give one folder at a time")
    if args.register:
        register_from_file(args.register)
    zoo = Zoo(Path(__file__).resolve().parent.parent)
    for folder in args.runs:
        print(visible(f"{folder}: {zoo.add(folder, args.config, args.plain)}"))
    zoo.fill()


if __name__ == "__main__":
    main()
