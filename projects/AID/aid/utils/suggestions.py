"""Suggestions for misspelled names in messages."""

import os
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "did_you_mean_file", "nearest"]


def nearest(name: object, names: Iterable[str]) -> str | None:
    """Find the name that is most like a misspelled one, regardless of case; None if none is."""
    by_folded = {x.casefold(): x for x in names}
    close = get_close_matches(str(name).casefold(), by_folded, n=1)
    return by_folded[close[0]] if close else None


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Part of a message that suggests the :func:`nearest` name; empty if there is none."""
    close = nearest(name, names)
    return f" (did you mean {close}?)" if close else ""


def did_you_mean_file(path: str, *roots: str) -> str:
    """Part of a message that suggests a file of nearly the same name in the same folder, or the
    ``config.yaml`` in the output folder of a run.

    Args:
        path: of a missing file, or a folder in place of a file.
        roots: folders that a relative path may start from; default: the current folder.
    """
    if os.path.isfile(os.path.join(path, "config.yaml")):
        return f" (did you mean {os.path.join(path, 'config.yaml')}?)"
    folder, name = os.path.split(path)
    for root in roots or ("",):
        place = os.path.join(root, folder) or "."
        files = [x.name for x in os.scandir(place) if x.is_file()] if os.path.isdir(place) else []
        close = nearest(name, files)
        if close:
            return f" (did you mean {os.path.join(folder, close)}?)"
    return ""
