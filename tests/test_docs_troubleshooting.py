"""Every message that docs/troubleshooting.md quotes is one that the code can say."""

import ast
import glob
import os
import re

import pytest

from aid.config import load_config

# Of a string's own text, without what is put into it: less would fit anything.
LEAST = 20
PLACE = re.compile(r"%(?:\.\d)?[sdg]")
QUOTED = re.compile(r"^\* (`+) ?(?:error|WARNING): (.*?) ?\1$", re.MULTILINE)


def patterns(source: str) -> list[re.Pattern]:
    """Of the strings in a module, with anything where values are put in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [x.value if isinstance(x, ast.Constant) else None for x in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts = PLACE.split(node.value)
            parts = [x for text in texts for x in (text, None)][:-1]
        else:
            continue
        if sum(len(x) for x in parts if x) >= LEAST:
            found.append(re.compile("".join(".*" if x is None else re.escape(x) for x in parts)))
    return found


@pytest.fixture(scope="module")
def said(repository):
    """All that the code can say."""
    files = [os.path.join(repository, "train_net.py")]
    files += glob.glob(f"{repository}/projects/AID/**/*.py", recursive=True)
    texts = []
    for path in files:
        with open(path) as f:
            texts += patterns(f.read())
    return texts


@pytest.fixture(scope="module")
def page(repository):
    with open(os.path.join(repository, "docs", "troubleshooting.md")) as f:
        return f.read()


def test_quoted_messages_are_in_the_source(page, said):
    quoted = [message for _, message in QUOTED.findall(page)]
    assert len(quoted) > 25
    assert [x for x in quoted if not any(p.fullmatch(x) for p in said)] == []


def test_a_message_that_nobody_says_is_found(said):
    for message in ("TEACHER.WEIGHTS are missing", "the teacher has 80 classes, the student 3"):
        assert not any(p.fullmatch(message) for p in said)


def test_keys_that_are_advised_exist(page):
    cfg = load_config(os.path.join(os.path.dirname(__file__), "../configs/Base-RCNN-FPN.yaml"))
    names = (
        r"\b((?:MODEL|TEACHER|DISTILLATION|AID|SOLVER|INPUT|DATASETS|DATALOADER)(?:\.[A-Z_0-9]+)+)"
    )
    for name in set(re.findall(names, page)):
        node = cfg
        for part in name.split("."):
            assert part in node, name
            node = node[part]
