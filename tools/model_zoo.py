#!/usr/bin/env python3
"""Fill MODEL_ZOO.md from output folders of students that were trained with a teacher.

    python tools/model_zoo.py output/AID/faster_rcnn_R18_from_R101
    python tools/model_zoo.py output/quickstart/*_from_*
    python tools/model_zoo.py                # the tables alone, after a config came or went

For each folder it writes what was measured to docs/results/zoo, and makes the tables anew. A row's
config is the one with the run's OUTPUT_DIR. The teacher's AP is that of TEACHER.EVAL_FIRST, or of
the run that TEACHER.WEIGHTS come from; the plain student's that of the config's base. Both runs are
looked for beside the folder first. Keys that the config has otherwise today are named in the row.
"""

import argparse
from pathlib import Path

import aid  # noqa: F401  (registers models and datasets)
from aid.data import register_from_file
from aid.utils.errors import AIDError, main_with_clear_errors
from aid_tools.report.zoo import Zoo


@main_with_clear_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="FOLDER", help="output folders")
    add("--config", metavar="FILE", help="config of the folder, if its OUTPUT_DIR was another")
    add("--plain", metavar="FOLDER", help="output folder of the same student without a teacher")
    add("--register", metavar="FILE", help="Python file that registers your own datasets")
    args = parser.parse_args(argv)
    if len(args.runs) != 1 and (args.config or args.plain):
        raise AIDError("--config and --plain belong to one folder: give one at a time")
    if args.register:
        register_from_file(args.register)
    zoo = Zoo(Path(__file__).resolve().parent.parent)
    for folder in args.runs:
        print(f"{folder}: {zoo.add(folder, args.config, args.plain)}")
    zoo.fill()


if __name__ == "__main__":
    main()
