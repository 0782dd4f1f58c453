#!/usr/bin/env python3
"""Train or evaluate with a LazyConfig; Detectron2's tools/lazyconfig_train_net.py with teachers.

    python tools/lazyconfig_train_net.py \\
        --config-file configs/lazy/faster_rcnn_R18_from_R34_quickstart.py train.max_iter=100
    python tools/lazyconfig_train_net.py --config-file ... --eval-only \\
        train.init_checkpoint=output/.../model_final.pth

The config's `model` is a call of aid.modeling.build_distilled, or any detector. A LazyConfig is a
Python program: run trusted ones only. Unlike train_net.py, this script neither checks configs and
datasets before training nor continues the stream of data when it resumes.
"""

import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "projects/AID"))  # if not installed

from aid_tools.arguments import add_config_file, make_parser
from aid_tools.command import command
from aid_tools.train_arguments import add_process_options


def build_parser() -> ArgumentParser:
    """Create a parser with the options of Detectron2's script."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config_file(parser, "LazyConfig, a Python file")
    add("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    add("--eval-only", action="store_true", help="evaluate train.init_checkpoint")
    add_process_options(parser, on_cpu=False)
    add("opts", nargs=REMAINDER, metavar="KEY=VALUE", help="overrides of the config")
    return parser


@command(build_parser)
def start(args: Namespace) -> None:
    # Imported late, see aid_tools/command.py.
    from aid.engine import launch
    from aid.engine.lazyconfig import main

    launch(main, args)


if __name__ == "__main__":
    start()
