"""Pickles that hold arrays alone, told from those that do more.

A pickle is a program: it names functions of Python's and calls them. Those of Detectron2's model
zoo only put numbers into arrays, and arrays into dicts and lists.
"""

import pickle
import re
from collections import OrderedDict
from typing import NoReturn

__all__ = ["check_pickle"]


def check_pickle(path: str) -> None:
    """Go through a pickle without calling what it names.

    What passes is safe to unpickle: nothing but arrays of plain numbers, strings, numbers and
    containers is made. Functions that make arrays are called as stand-ins that look at their
    arguments, since numpy trusts those: a wrong dtype would let numbers pass for pointers.

    Args:
        path: of the file.

    Raises:
        UnpicklingError: the file names something else, or is no pickle; other errors likewise.
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
    """In place of a ``numpy.dtype``."""

    def __setstate__(self, state: tuple) -> None:
        _, _, *rest = state  # version and byte order
        if rest != [None, None, None, -1, -1, 0]:
            _refuse("numpy.dtype.__setstate__")


class _Array:
    """In place of a ``numpy.ndarray``."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, data = state
        _check_array(shape, dtype, data, (bytes, str))  # str: written by Python 2


def _check_array(shape: tuple, dtype: object, data: object, kinds: tuple[type, ...]) -> None:
    plain = isinstance(dtype, _DType) and isinstance(data, kinds) and isinstance(shape, tuple)
    if not plain or not all(isinstance(n, int) and n >= 0 for n in shape):
        _refuse("numpy.ndarray.__setstate__")


# Functions and no classes: a pickle can make an instance of a class without its __init__.
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


def _refuse(what: str) -> NoReturn:
    raise pickle.UnpicklingError(f"GLOBAL {what} is refused")  # in the words of torch


NDARRAY = object()
KNOWN = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
for core in ("core", "_core"):  # before numpy 2, and since
    KNOWN[f"numpy.{core}.multiarray", "_reconstruct"] = _reconstruct
    KNOWN[f"numpy.{core}.numeric", "_frombuffer"] = _from_buffer
