"""Check that a pickle contains plain arrays only.

A pickle can call any Python function by name. The files in Detectron2's model zoo only build arrays
of numbers, in dicts and lists.
"""

import pickle
import re
from collections import OrderedDict
from typing import NoReturn

__all__ = ["check_pickle"]


def check_pickle(path: str) -> None:
    """Check that a pickle is safe to load, without calling the functions that it names.

    Safe are arrays of numbers, strings, numbers and containers. The functions that build arrays are
    replaced by checks of their arguments, which NumPy trusts: with a wrong dtype it would read
    numbers as pointers.

    Args:
        path: of the file.

    Raises:
        UnpicklingError: the file names other functions or classes.
        Exception: of any kind, if the file is no valid pickle.
    """
    with open(path, "rb") as f:
        _Checker(f, encoding="latin1").load()


class _Checker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return KNOWN[module, name]
        except KeyError:
            _refuse(f"{module}.{name}")


class _DType:
    """Replacement of ``numpy.dtype``."""

    def __setstate__(self, state: tuple) -> None:
        _, _, *rest = state  # version and byte order
        if rest != [None, None, None, -1, -1, 0]:
            _refuse("numpy.dtype.__setstate__")


class _Array:
    """Replacement of ``numpy.ndarray``."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, data = state
        _check_array(shape, dtype, data, (bytes, str))  # str: written by Python 2


def _check_array(shape: tuple, dtype: object, data: object, kinds: tuple[type, ...]) -> None:
    plain = isinstance(dtype, _DType) and isinstance(data, kinds) and isinstance(shape, tuple)
    if not plain or not all(isinstance(n, int) and n >= 0 for n in shape):
        _refuse("numpy.ndarray.__setstate__")


# Functions instead of classes, whose __init__ a pickle could bypass.
def _dtype(kind: str, align: bool, copy: bool) -> _DType:
    if not re.fullmatch(r"[biufc]\d{1,2}", kind):
        _refuse(f"numpy.dtype {kind}")
    return _DType()


def _reconstruct(kind: object, shape: tuple, code: bytes | str) -> _Array:
    if kind is not NDARRAY or shape != (0,) or code not in (b"b", "b"):
        _refuse("numpy.ndarray")
    return _Array()


def _from_buffer(data: object, dtype: object, shape: tuple, *order: object) -> _Array:
    _check_array(shape, dtype, data, (bytes, bytearray))
    return _Array()


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        _refuse(f"codec {codec}")
    return text.encode(codec)


def _refuse(name: str) -> NoReturn:
    raise pickle.UnpicklingError(f"GLOBAL {name} is refused")  # "GLOBAL name" as in PyTorch


NDARRAY = object()
KNOWN = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
for core in ("core", "_core"):  # before and since NumPy 2
    KNOWN[f"numpy.{core}.multiarray", "_reconstruct"] = _reconstruct
    KNOWN[f"numpy.{core}.numeric", "_frombuffer"] = _from_buffer
