"""Command lines in messages."""

import shlex
from pathlib import Path

__all__ = ["REGISTERED", "script_path", "train_command"]

REPOSITORY = Path(__file__).resolve().parents[4]

# Paths of the files that --register has run in this process.
REGISTERED: list[str] = []


def script_path(script: str) -> str:
    """Path of a script that is valid in the current folder.

    Args:
        script: its path in the repository.

    Returns:
        The path relative to the current folder if it is below that, otherwise the absolute path; as
        given if the package is installed without its repository.
    """
    path = REPOSITORY / script
    if not path.is_file():
        return script
    try:
        return str(path.relative_to(Path.cwd()))
    except (FileNotFoundError, ValueError):  # the current folder was removed, or is elsewhere
        return str(path)


def train_command(config_file: str, device: str, script: str = "train_net.py") -> str:
    """Command line that trains by a config file where this process runs.

    Args:
        config_file: path of the config file.
        device: MODEL.DEVICE of this process.
        script: path of the script in the repository.
    """
    arguments = ["python", script_path(script), "--config-file", config_file]
    arguments += [x for path in REGISTERED for x in ("--register", path)]
    return shlex.join([*arguments, *(["--num-gpus", "0"] if device == "cpu" else [])])
