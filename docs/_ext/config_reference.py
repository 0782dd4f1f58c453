"""A list of all config keys, from the code that adds them.

It takes the place of ``<!-- config keys -->`` in a page. What keys mean is the comment above them,
which holds until the next comment or empty line; one behind a key is of that key alone. A key of
which nothing is said ends the build.
"""

import ast
import inspect
from dataclasses import dataclass
from itertools import groupby

from detectron2.config import CfgNode, get_cfg

from aid.config import add_aid_config

MARK = "<!-- config keys -->"


@dataclass
class Key:
    """A config key.

    Attributes:
        name: with dots.
        default: its value.
        comment: above it, which it may share with the keys before it.
        remark: behind it.
    """

    name: str
    default: object
    comment: str
    remark: str

    @property
    def section(self) -> str:
        """Heading of the part of the list that the key is in."""
        parts = self.name.split(".")
        return ".".join(parts[: 2 if parts[0] == "MODEL" else 1])


def added_keys() -> dict[str, object]:
    """{name: default} of the keys that the project adds to Detectron2's."""
    before, after = get_cfg(), get_cfg()
    add_aid_config(after)
    known = _flat(before)
    return {name: value for name, value in _flat(after).items() if name not in known}


def _flat(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def comments(source: str) -> dict[str, tuple[str, str]]:
    """{name: (comment above, remark behind)} of all keys of ``cfg`` that are set, sections too.

    Args:
        source: of a module, in which keys are added by lines such as ``cfg.AID.ALPHA = 0.1``.
    """
    lines = source.splitlines()
    keys = {
        node.lineno: ast.unparse(node.targets[0]).removeprefix("cfg.")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("cfg.")
    }
    found, above = {}, []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line.startswith("#"):
            is_first = not lines[number - 2].strip().startswith("#")
            above = [*([] if is_first else above), line.lstrip("# ")]
        elif number in keys:
            found[keys[number]] = " ".join(above), line.partition("  # ")[2]
        elif not line:
            above = []
    return found


def read_keys(source: str, defaults: dict[str, object]) -> list[Key]:
    """All keys with what is said of them, in the order of the source.

    Args:
        source: see :func:`comments`.
        defaults: of the keys that there are, by name.

    Raises:
        ValueError: nothing is said of a key.
    """
    said = comments(source)
    silent = [name for name in defaults if not any(said.get(name, ()))]
    if silent:
        raise ValueError(
            f"no comment says what {', '.join(silent)} means: write one above it in add_aid_config"
        )
    return [Key(name, defaults[name], *said[name]) for name in said if name in defaults]


def as_markdown(keys: list[Key]) -> str:
    """A list for each section, in which keys that share a comment are together."""
    parts = []
    for section, members in groupby(keys, key=lambda key: key.section):
        parts += ["", f"## {section}", ""]
        for comment, group in groupby(members, key=lambda key: key.comment):
            parts += [comment.replace("*", "\\*"), ""]
            for key in group:
                remark = f": {key.remark}" if key.remark else ""
                kind = type(key.default).__name__
                parts.append(f"* `{key.name}`, {kind}, `{key.default!r}`{remark}")
            parts.append("")
    return "\n".join(parts)


def reference() -> str:
    """The list of the project's keys."""
    with open(inspect.getsourcefile(add_aid_config)) as f:
        return as_markdown(read_keys(f.read(), added_keys()))


def on_source_read(app, docname: str, content: list[str]) -> None:
    if MARK in content[0]:
        content[0] = content[0].replace(MARK, reference())
        app.env.note_dependency(inspect.getsourcefile(add_aid_config))


def setup(app) -> dict:
    app.connect("source-read", on_source_read)
    return {"parallel_read_safe": True}
