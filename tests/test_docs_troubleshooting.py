"""Messages quoted in docs/troubleshooting.md, checked against the source."""

import ast
import glob
import os
import re

import pytest

from aid.config import load_config

# Minimum of constant characters in a string: shorter ones would match any message.
MIN_LENGTH = 20
FORMAT = re.compile(r"%(?:\.\d)?[sdg]")
QUOTED = re.compile(r"^\* (`+) ?(?:error|WARNING): (.*?) ?\1$", re.MULTILINE)


def patterns(source: str) -> list[re.Pattern]:
    """Patterns of the strings in a module, with wildcards for formatted values."""
    result = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [x.value if isinstance(x, ast.Constant) else None for x in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts = FORMAT.split(node.value)
            parts = [x for text in texts for x in (text, None)][:-1]
        else:
            continue
        if sum(len(x) for x in parts if x) >= MIN_LENGTH:
            result.append(re.compile("".join(".*" if x is None else re.escape(x) for x in parts)))
    return result


@pytest.fixture(scope="module")
def messages(repository):
    """Patterns of all messages of the code."""
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


def test_quoted_messages_are_in_the_source(page, messages):
    quoted = [message for _, message in QUOTED.findall(page)]
    assert len(quoted) > 25
    assert [x for x in quoted if not any(p.fullmatch(x) for p in messages)] == []


def test_unknown_messages_do_not_match(messages):
    for message in ("TEACHER.WEIGHTS are missing", "the teacher has 80 classes, the student 3"):
        assert not any(p.fullmatch(message) for p in messages)


def test_config_keys_of_the_page_exist(page):
    cfg = load_config(os.path.join(os.path.dirname(__file__), "../configs/Base-RCNN-FPN.yaml"))
    names = (
        r"\b((?:MODEL|TEACHER|DISTILLATION|AID|SOLVER|INPUT|DATASETS|DATALOADER)(?:\.[A-Z_0-9]+)+)"
    )
    for name in set(re.findall(names, page)):
        node = cfg
        for part in name.split("."):
            assert part in node, name
            node = node[part]
