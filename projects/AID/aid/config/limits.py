"""Checks of image sizes, and of YAML files: of their size, since they can stand for values without
end, and of keys that are given twice."""

from contextlib import suppress
from typing import TextIO

import yaml
from detectron2.config import CfgNode

from ..utils.errors import AIDError

__all__ = ["check_sizes", "read_limited"]

# Largest size of a file, and of its content with all aliases written out. The dump of a whole
# config has 15,000 characters.
MAX_CHARACTERS = 2**18


def check_sizes(cfg: CfgNode) -> None:
    """Check the sizes of INPUT to which images are resized, in pixels.

    Raises:
        AIDError: a size is negative, or the limit of the longer side is 0.
    """
    for split in ("TRAIN", "TEST"):
        key, limit = f"MIN_SIZE_{split}", f"MAX_SIZE_{split}"
        sizes = cfg.INPUT[key]
        given = sizes if isinstance(sizes, list | tuple) else [sizes]
        numbers = [x for x in given if isinstance(x, int | float)]
        if any(x < 0 for x in numbers):
            raise AIDError(f"INPUT.{key} is {sizes}: give pixels, or 0 to keep the size of images")
        if any(numbers) and cfg.INPUT[limit] <= 0:
            raise AIDError(
                f"INPUT.{limit} is {cfg.INPUT[limit]}: give the largest length of the longer side "
                "in pixels"
            )


def read_limited(path: str, file: TextIO) -> str:
    """Read the text of a YAML file, and check its size and keys before any object is built.

    Args:
        path: of the file, for messages.
        file: the open file.

    Raises:
        AIDError: the file, or its content with all aliases written out, is too large, or a section
            has a key twice.
        yaml.YAMLError: the file has aliases and is no YAML.
        RecursionError: it is nested too deeply.
    """
    text = file.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise AIDError(
            f"{path} has more than {MAX_CHARACTERS} characters: a config or study has a few "
            "thousand; check that it is the right file"
        )
    if "&" in text:  # an anchor, to which aliases refer
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _num_characters(root, {}) > MAX_CHARACTERS:
            raise AIDError(
                f"{path}: with its aliases (*name) written out it has more than {MAX_CHARACTERS} "
                "characters: use fewer aliases inside of what other aliases refer to"
            )
    with suppress(yaml.YAMLError, RecursionError):  # reported when the text is loaded
        _check_keys(path, yaml.compose(text, Loader=yaml.SafeLoader))
    return text


def _check_keys(path: str, root: yaml.Node | None) -> None:
    """Check that no section has a key twice, of which YAML would keep the last value only."""
    nodes, known = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))  # aliases may lead back to it
        if not isinstance(node, yaml.MappingNode):
            nodes += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            nodes.append(value)
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":  # a merge of another section
                raise AIDError(
                    f"{path} has {name} twice in one section, in lines {lines[name]} and {line}: "
                    "YAML would drop the first one; join them, or take one out"
                )
            lines[name] = line


def _num_characters(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of characters of a node with its aliases written out, and 1 for each value in it.

    Args:
        node: with the same object wherever an alias refers to it.
        known: {id of a node: its result}, extended in place.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) not in known:
        known[id(node)] = float("inf")  # while it is open: an alias to a node around it
        pairs = isinstance(node, yaml.MappingNode)
        children = [x for pair in node.value for x in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_num_characters(x, known) for x in children)
    return known[id(node)]
