"""Command lines in messages."""

import shlex

__all__ = ["REGISTERED", "train_command"]

# Paths of the files that --register has run in this process.
REGISTERED: list[str] = []


def train_command(config_file: str, device: str, script: str = "train_net.py") -> str:
    """Command line that trains by a config file where this process runs.

    Args:
        config_file: path of the config file.
        device: MODEL.DEVICE of this process.
        script: path of the script.
    """
    arguments = ["python", script, "--config-file", config_file]
    arguments += [x for path in REGISTERED for x in ("--register", path)]
    return shlex.join([*arguments, *(["--num-gpus", "0"] if device == "cpu" else [])])
