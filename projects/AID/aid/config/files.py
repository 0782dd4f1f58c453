"""Loading of config files."""

import io
import os
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode as CN

from ..utils.d2 import decode_value
from ..utils.errors import AIDError
from ..utils.suggestions import did_you_mean_file
from .access import flat_keys, get_value, set_value
from .keys import default_config
from .limits import check_sizes, read_limited
from .mistakes import describe

__all__ = [
    "PYTHON",
    "check_exists",
    "check_program",
    "is_network",
    "is_program",
    "load_config",
]

# Keys of the section TEACHER that are paths of config files.
TEACHER_CONFIG_KEYS = ("CONFIG_FILE", "MORE_CONFIG_FILES")

# Suffixes and prefix of a TEACHER.CONFIG_FILE that is a program: a LazyConfig, a TorchScript file,
# or the name of a Python object.
LAZY = ".py"
TORCHSCRIPT = (".pt", ".ts")
PYTHON = "python:"
# Programs named on a command line of this process; a config file alone cannot name them.
_named_by_user: set[str] = set()

# Ends of keys that may be None in Detectron2.
NONE_ALLOWED = ("NORM", "WEIGHT_DECAY_BIAS")

# Largest number of files that one config is made of. The project's have up to six.
MAX_FILES = 50


class _Reader(CN):
    """Config node that resolves teachers' paths relative to the file or base that sets them.

    Every reading has a subclass of its own.

    Attributes:
        chain: the file that is read, and before it those that name it as their base.
        num_files: of the reading so far.
    """

    chain: tuple[str, ...] = ()
    num_files = 0

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        with super()._open_cfg(filename) as f:
            return io.StringIO(read_limited(filename, f))

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        chain, path = cls.chain, os.path.realpath(filename)
        if path in chain:
            raise AIDError(f"{filename}: its _BASE_ leads back to itself")
        cls.chain, cls.num_files = (*chain, path), cls.num_files + 1
        if cls.num_files > MAX_FILES:
            raise AIDError(
                f"{cls.chain[0]}: its _BASE_ and those of its bases name more than {MAX_FILES} "
                "files, counted as often as they are named: use fewer"
            )
        try:
            loaded = super().load_yaml_with_base(filename, allow_unsafe)  # recurses into bases
        except (AttributeError, TypeError):
            loaded = None
        cls.chain = chain
        if not isinstance(loaded, dict):
            raise ValueError(f"{filename} is no mapping of keys, or its _BASE_ is no path")
        teacher = loaded.get("TEACHER")
        for key in TEACHER_CONFIG_KEYS:
            if isinstance(teacher, dict) and key in teacher:
                # Decoded as in the later merge: YACS reads the string "('a.yaml',)" as a tuple.
                teacher[key] = _all_beside(filename, cls._decode_cfg_value(teacher[key]))
        return loaded


def load_config(config_file: str, opts: Sequence[str] = (), *, allow_unsafe: bool = False) -> CN:
    """Load a config file that may use the project's keys.

    Paths in TEACHER.CONFIG_FILE and TEACHER.MORE_CONFIG_FILES that are relative to the file that
    sets them become absolute, so that the dumped config is valid in any folder. A ``~`` at the
    start of OUTPUT_DIR and TEACHER.CACHE is the home folder, as in a shell. Whole numbers are taken
    for floats.

    Args:
        config_file: path of the YAML file.
        opts: ``KEY VALUE`` pairs that override the file, as on the command line.
        allow_unsafe: let YAML tags construct objects; only for files that come with Detectron2.

    Returns:
        The config, not frozen.

    Raises:
        AIDError: the file is missing, malformed or too large, a key is unknown, or a value has a
            wrong type, or an image size is negative.
    """
    check_exists(config_file)
    cfg = default_config()
    _merge_file(cfg, config_file, allow_unsafe)
    _merge_options(cfg, list(opts))
    for key in TEACHER_CONFIG_KEYS:
        cfg.TEACHER[key] = _all_beside(config_file, cfg.TEACHER[key])
        if f"TEACHER.{key}" in opts[::2]:
            paths = cfg.TEACHER[key]
            _named_by_user.update([paths] if isinstance(paths, str) else map(str, paths))
    _check_none(cfg)
    check_sizes(cfg)
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    cfg.TEACHER.CACHE = os.path.expanduser(cfg.TEACHER.CACHE)
    return cfg


def check_exists(config_file: str) -> None:
    """Check that there is a config file.

    Raises:
        AIDError: there is none; the message suggests one of nearly the same name.
    """
    if not os.path.isfile(config_file):
        fault = "is a folder" if os.path.isdir(config_file) else "does not exist"
        raise AIDError(
            f"config file {config_file} {fault}{did_you_mean_file(config_file)}: check "
            "--config-file"
        )


def _merge_file(cfg: CN, config_file: str, allow_unsafe: bool) -> None:
    """Merge a file and its bases into a config, with the paths of :class:`_Reader`."""
    read: dict = {}
    reader = type("_Reading", (_Reader,), {})
    try:
        read = reader.load_yaml_with_base(config_file, allow_unsafe=allow_unsafe)
        whole = [key for key, value in flat_keys(read).items() if _is_whole(cfg, key, value)]
        for key in whole:  # YACS takes a whole number only in place of another
            set_value(cfg, key, 0)
        cfg.merge_from_file(config_file, allow_unsafe=allow_unsafe)
        for key in whole:
            set_value(cfg, key, float(get_value(cfg, key)))
    except yaml.YAMLError as error:
        raise AIDError(
            f"{config_file}: not plain YAML: {describe(error, cfg, read)}; object tags are refused"
        ) from error
    except OSError as error:
        if not isinstance(error.filename, str):  # of a URL
            raise AIDError(f"{config_file}: {describe(error, cfg, read)}") from error
        raise AIDError(_unread(config_file, reader.chain, error)) from error
    except (AssertionError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise AIDError(f"{config_file}: {describe(error, cfg, read)}") from error
    except RecursionError as error:
        raise AIDError(f"{config_file}: lists or keys are nested too deeply") from error
    for key, value in read.get("TEACHER", {}).items():
        if key in TEACHER_CONFIG_KEYS:
            cfg.TEACHER[key] = value


def _unread(config_file: str, chain: tuple[str, ...], error: OSError) -> str:
    """Message about a file that cannot be read; see :class:`_Reader` for the chain up to it."""
    missing = isinstance(error, FileNotFoundError)
    fault = "does not exist" if missing else f"cannot be read ({error.strerror})"
    fault = f"{fault}{did_you_mean_file(error.filename)}"
    if len(chain) < 2:
        return f"{config_file} {fault}"
    namer = config_file if len(chain) == 2 else chain[-2]
    return f"{namer}: _BASE_ names {error.filename}, which {fault}"


def _merge_options(cfg: CN, opts: list) -> None:
    """Merge ``KEY VALUE`` pairs into a config."""
    try:
        for i in range(1, len(opts), 2):
            if _is_whole(cfg, opts[i - 1], opts[i]):
                opts[i] = float(decode_value(opts[i]))
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError, OverflowError, TypeError, ValueError) as error:
        given = dict(zip(opts[::2], opts[1::2], strict=False))
        raise AIDError(f"command line options: {describe(error, cfg, given)}") from error


def is_network(config_file: str) -> bool:
    """Whether a TEACHER.CONFIG_FILE names a network without heads."""
    return config_file.endswith(TORCHSCRIPT) or config_file.startswith(PYTHON)


def is_program(config_file: str) -> bool:
    """Whether a TEACHER.CONFIG_FILE names a program, which is run to build the teacher."""
    return config_file.endswith(LAZY) or is_network(config_file)


def check_program(config_file: str, key: str) -> None:
    """Check that a teacher's program was named in ``opts`` of :func:`load_config`.

    LazyConfigs of Detectron2's model zoo are trusted.

    Args:
        config_file: value of the key after :func:`load_config`.
        key: TEACHER.CONFIG_FILE or an entry of TEACHER.MORE_CONFIG_FILES.

    Raises:
        AIDError: only a config file names the program; config files must not be able to run code.
    """
    # A missing file is reported elsewhere.
    exists = os.path.isfile(config_file) or config_file.startswith(PYTHON)
    if exists and is_program(config_file) and config_file not in _named_by_user:
        raise AIDError(
            f"{key} {config_file} is a program, which no config file can name: if you trust it, "
            f"add {key.partition('[')[0]} with its value to the command line"
        )


def _is_whole(cfg: CN, key: str, value: object) -> bool:
    """Whether a value is a whole number for a key whose default is a float."""
    try:
        default = get_value(cfg, key)
    except (KeyError, TypeError):  # reported when it is merged
        return False
    return type(default) is float and type(decode_value(value)) is int


def _check_none(node: CN, prefix: str = "") -> None:
    """Refuse values of None, which YACS accepts for any key and Detectron2 for a few."""
    for key, value in node.items():
        if isinstance(value, CN):
            _check_none(value, f"{prefix}{key}.")
        elif value is None and not key.endswith(NONE_ALLOWED):
            raise AIDError(f"{prefix}{key} is None: give it a value, or leave it out")


def _all_beside(config_file: str, paths: object) -> object:
    """Make each path absolute that is a file relative to the folder of ``config_file``.

    Args:
        paths: a path or a list of them; other values are returned unchanged.
    """
    if isinstance(paths, list | tuple):
        return [_all_beside(config_file, path) for path in paths]
    if not isinstance(paths, str) or not paths:
        return paths
    joined = os.path.join(os.path.dirname(os.path.abspath(config_file)), paths)
    return os.path.normpath(joined) if os.path.isfile(joined) else paths
