"""Messages quoted in docs/troubleshooting.md, checked against the source."""

import ast
import glob
import os
import re

import pytest

from aid.config import load_config

# Minimum of constant characters in a string: shorter ones would match any message.
MIN_LENGTH = 20
# Most characters of a quoted message in a row that are in no string of the code, such as a path;
# longer ones are of others.
MAX_GAP = 45
OF_OTHERS = ("KeyError: 'BatchNorm' (", "(URLError")
FORMAT = re.compile(r"%(?:\.\d)?[sdg]")
QUOTED = re.compile(r"^\* (`+) ?(?:error|WARNING): (.*?) ?\1$", re.MULTILINE)


def patterns(source: str) -> tuple[list[re.Pattern], set[str]]:
    """Patterns of the strings in a module, with wildcards for formatted values, and their parts."""
    result, fragments = [], set()
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
        fragments |= {x for x in parts if x and len(x) >= 8}
    return result, fragments


def longest_gap(message: str, fragments: set[str]) -> int:
    """Most characters of a message in a row that are in none of the fragments."""
    covered = bytearray(len(message))
    for fragment in fragments:
        start = message.find(fragment)
        while start >= 0:
            covered[start : start + len(fragment)] = b"\1" * len(fragment)
            start = message.find(fragment, start + 1)
    return max(map(len, re.findall(rb"\0+", covered)), default=0)


@pytest.fixture(scope="module")
def messages(repository):
    """Patterns of all messages of the code, and their parts."""
    files = [os.path.join(repository, "train_net.py")]
    files += glob.glob(f"{repository}/projects/AID/**/*.py", recursive=True)
    texts, parts = [], set()
    for path in files:
        with open(path) as f:
            new, fragments = patterns(f.read())
        texts, parts = texts + new, parts | fragments
    return texts, parts


@pytest.fixture(scope="module")
def page(repository):
    with open(os.path.join(repository, "docs", "troubleshooting.md")) as f:
        return f.read()


def test_quoted_messages_are_in_the_source(page, messages):
    quoted = [message for _, message in QUOTED.findall(page)]
    assert len(quoted) > 25
    texts, parts = messages
    assert [x for x in quoted if not any(p.fullmatch(x) for p in texts)] == []
    own = [x for x in quoted if not any(y in x for y in OF_OTHERS)]
    assert [x for x in own if longest_gap(x, parts) > MAX_GAP] == [] and len(own) < len(quoted)


def test_unknown_messages_do_not_match(messages):
    texts, parts = messages
    for message in ("TEACHER.WEIGHTS are missing", "the teacher has 80 classes, the student 3"):
        assert not any(p.fullmatch(message) for p in texts)
    tail = "command line options: and then something else that no part of the code says anywhere"
    assert longest_gap(tail, parts) > MAX_GAP


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
