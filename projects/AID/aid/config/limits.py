"""Limits on image sizes, and on YAML files: their size, and keys that are given twice."""

from collections.abc import Iterator
from typing import TextIO

import yaml
from detectron2.config import CfgNode

from ..utils.errors import AIDError

__all__ = ["check_sizes", "read_limited"]

# Largest size of a file, and of its content with all aliases written out, which could be endless.
# The dump of a whole config has 15,000 characters.
MAX_CHARACTERS = 2**18
# Tag of the key "<<", which may be repeated.
MERGE = "tag:yaml.org,2002:merge"


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
    """Read the text of a YAML file, and check it before any object is built.

    Args:
        path: of the file, for messages.
        file: the open file.

    Raises:
        AIDError: the file, or its content with all aliases written out, is too large, or a key is
            given twice in one section, of which YAML would drop the first.
        yaml.YAMLError: the file is no YAML.
        RecursionError: it is nested too deeply.
    """
    text = file.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise AIDError(
            f"{path} has more than {MAX_CHARACTERS} characters: a config or study has a few "
            "thousand; check that it is the right file"
        )
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return text
    if "&" in text and _num_characters(root, {}) > MAX_CHARACTERS:  # "&" marks an anchor
        raise AIDError(
            f"{path}: with its aliases (*name) written out it has more than {MAX_CHARACTERS} "
            "characters: use fewer aliases inside of what other aliases refer to"
        )
    for key in _repeated_keys(root, set()):
        raise AIDError(
            f"{path}, line {key.start_mark.line + 1}: {key.value} is given twice in one section, "
            "where the last would replace the others: join them"
        )
    return text


def _repeated_keys(node: yaml.Node, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    """Keys of all sections in a node that are there before.

    Args:
        node: a node; an alias is the node that it refers to.
        seen: ids of the nodes that were visited, extended in place.
    """
    if isinstance(node, yaml.ScalarNode) or id(node) in seen:
        return
    seen.add(id(node))
    names = set()
    for child in node.value:
        key, value = child if isinstance(node, yaml.MappingNode) else (None, child)
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            if (key.tag, key.value) in names:
                yield key
            names.add((key.tag, key.value))
        yield from _repeated_keys(value, seen)


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
