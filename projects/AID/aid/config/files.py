"""How config files are read."""

import os

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from ..utils.errors import AIDError
from .keys import add_aid_config

__all__ = ["get_value", "load_config"]

# Keys that hold paths of teachers' config files.
TEACHER_CONFIG_KEYS = ("CONFIG_FILE", "MORE_CONFIG_FILES")


class _Reader(CN):
    """Reads a file and its bases; a teacher's relative path belongs to the one that names it."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        try:
            loaded = super().load_yaml_with_base(filename, allow_unsafe)  # calls this for bases
        except (AttributeError, TypeError):
            loaded = None
        if not isinstance(loaded, dict):
            raise ValueError(f"{filename} is no mapping of keys, or its _BASE_ is no path")
        teacher = loaded.get("TEACHER")
        for key in TEACHER_CONFIG_KEYS:
            if isinstance(teacher, dict) and key in teacher:
                # As the merge decodes it: "('a.yaml',)" is a tuple to YACS.
                teacher[key] = _all_beside(filename, cls._decode_cfg_value(teacher[key]))
        return loaded


def load_config(config_file: str, opts: list[str] = (), *, allow_unsafe: bool = False) -> CN:
    """Read a config file with the project's keys.

    The YAML is read without object construction, unless told otherwise: a config is data.
    TEACHER.CONFIG_FILE and MORE_CONFIG_FILES, where they are paths relative to the file that names
    them, become absolute, so that the result can be dumped anywhere.

    Args:
        config_file: path of the YAML file.
        opts: ``KEY VALUE`` pairs that override the file, as on the command line.
        allow_unsafe: let YAML tags construct objects; for files that come with Detectron2 only.

    Raises:
        AIDError: the file is missing or malformed, or a key or value does not fit.
    """
    cfg = get_cfg()
    add_aid_config(cfg)
    if not os.path.isfile(config_file):
        raise AIDError(f"config file {config_file} does not exist: check --config-file")
    try:
        read = _Reader.load_yaml_with_base(config_file, allow_unsafe=allow_unsafe)
        cfg.merge_from_file(config_file, allow_unsafe=allow_unsafe)
    except yaml.YAMLError as error:
        raise AIDError(
            f"{config_file}: not plain YAML: {_one_line(error)}; object tags are refused"
        ) from error
    except (AssertionError, KeyError, TypeError, ValueError, OSError) as error:
        raise AIDError(f"{config_file}: {_one_line(error)}") from error
    except RecursionError as error:
        raise AIDError(f"{config_file}: its _BASE_ leads back to itself") from error
    for key, found in read.get("TEACHER", {}).items():
        if key in TEACHER_CONFIG_KEYS:
            cfg.TEACHER[key] = found
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise AIDError(f"command line options: {_one_line(error)}") from error
    for key in TEACHER_CONFIG_KEYS:
        cfg.TEACHER[key] = _all_beside(config_file, cfg.TEACHER[key])
    return cfg


def get_value(cfg: CN, key: str) -> object:
    """Value of a dotted key, such as "MODEL.FPN.OUT_CHANNELS"."""
    value = cfg
    for name in key.split("."):
        value = value[name]
    return value


def _all_beside(config_file: str, paths: object) -> object:
    """:func:`_beside` of a path, or of each in a list; anything else as it is."""
    if isinstance(paths, list | tuple):
        return [_all_beside(config_file, path) for path in paths]
    return _beside(config_file, paths) if isinstance(paths, str) else paths


def _beside(config_file: str, path: str) -> str:
    """``path``, made absolute if it is a file relative to the folder of ``config_file``."""
    found = os.path.join(os.path.dirname(os.path.abspath(config_file)), path)
    return os.path.normpath(found) if path and os.path.isfile(found) else path


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split()).strip("'\"")
    if "<class 'float'> vs. <class 'int'>" in said:
        said += "; write a whole number as 1.0"
    return said
