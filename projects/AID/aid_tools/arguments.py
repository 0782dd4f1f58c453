"""Command line options that several tools have in common.

Imports the standard library only, see :mod:`aid_tools.command`.
"""

from __future__ import annotations  # see aid_tools/command.py

import os
from argparse import REMAINDER, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter

__all__ = [
    "add_config_file",
    "add_detector",
    "add_device",
    "add_json",
    "add_num_gpus",
    "add_output",
    "add_overrides",
    "add_overrides_option",
    "add_register",
    "dataset_folder",
    "add_weights",
    "make_parser",
    "score",
]

OVERRIDES = "KEY VALUE pairs that override the config"


def make_parser(description: str) -> ArgumentParser:
    """Make the parser of a tool.

    Args:
        description: docstring of the tool, whose line breaks are kept in the help.
    """
    return ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)


def score(text: str) -> float:
    """Parse a number from 0 to 1, as the type of an option."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text} is no score from 0 to 1")
    return value


def dataset_folder(name: str) -> str:
    """Folder of a dataset below :func:`aid.data.builtin.datasets_root`, without importing that."""
    return os.path.join(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), name)


def add_config_file(parser: ArgumentParser, help: str) -> None:
    """Add the required option ``--config-file``."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help=help)


def add_weights(parser: ArgumentParser, help: str, default: str | None = None) -> None:
    """Add ``--weights``, a checkpoint."""
    parser.add_argument("--weights", default=default, metavar="FILE", help=help)


def add_detector(parser: ArgumentParser) -> None:
    """Add ``--config-file`` and ``--weights`` of :class:`~aid.inference.predictor.Predictor`."""
    add_config_file(
        parser, "output folder of a run, config file, or a name in Detectron2's model zoo"
    )
    add_weights(
        parser,
        "checkpoint of the detector (default: the last one of the output folder, or MODEL.WEIGHTS "
        "of the config file)",
    )


def add_output(parser: ArgumentParser, help: str, default: str | None = None) -> None:
    """Add ``--output``, a folder, which is required if there is no default."""
    if default is not None:
        help = f"{help} (default: %(default)s)"
    parser.add_argument(
        "--output", required=default is None, default=default, metavar="FOLDER", help=help
    )


def add_json(parser: ArgumentParser) -> None:
    """Add ``--json``, a file for the numbers that the tool prints."""
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this JSON file")


def add_register(parser: ArgumentParser, registered: str = "datasets") -> None:
    """Add ``--register``, a Python file that is run first.

    Args:
        parser: parser of the tool.
        registered: what such a file registers, for the help.
    """
    parser.add_argument(
        "--register", metavar="FILE", help=f"Python file that registers your own {registered}"
    )


def add_device(parser: ArgumentParser, default: str | None = None, shown: str = "") -> None:
    """Add ``--device``.

    Args:
        parser: parser of the tool.
        default: default value.
        shown: description of the default in the help, instead of its value.
    """
    parser.add_argument(
        "--device",
        default=default,
        help=f"cpu, cuda or cuda:N (default: {shown or '%(default)s'})",
    )


def add_num_gpus(parser: ArgumentParser, default: int, choices: tuple[int, ...] = ()) -> None:
    """Add ``--num-gpus``.

    Args:
        parser: parser of the tool.
        default: default value.
        choices: allowed values; empty for any number.
    """
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=default,
        choices=choices or None,
        metavar=None if choices else "N",
        help="number of GPUs; 0 runs on the CPU (default: %(default)s)",
    )


def add_overrides(parser: ArgumentParser) -> None:
    """Add the trailing arguments ``KEY VALUE ...`` that override the config, as ``opts``."""
    parser.add_argument("opts", nargs=REMAINDER, metavar="KEY VALUE", help=OVERRIDES)


def add_overrides_option(parser: ArgumentParser) -> None:
    """Add ``--opts KEY VALUE ...`` for tools whose positional arguments are used otherwise."""
    parser.add_argument(
        "--opts",
        nargs=REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help=f"{OVERRIDES}; must be the last option",
    )
