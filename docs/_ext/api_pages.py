"""Pages of the packages' modules, from their docstrings: one for each file, written before a build.

A page holds what the module's ``__all__`` names. Detectron2's own classes are not described again.
"""

import ast
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "projects/AID"
PACKAGES = ("aid", "aid_tools")


def modules() -> dict[str, Path]:
    """{dotted name: file} of all modules and packages, packages before what they hold."""
    found = {}
    paths = [path for package in PACKAGES for path in (PROJECT / package).rglob("*.py")]
    for path in sorted(paths, key=lambda path: path.with_suffix("").parts):
        parts = path.relative_to(PROJECT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dict(sorted(found.items()))


def public_names(path: Path) -> list[str]:
    """Names that ``__all__`` of a module lists."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def page(name: str, path: Path, below: list[str]) -> str:
    """The page of a module, or of a package, which lists the modules directly below it."""
    title = [name, "=" * len(name), ""]
    if path.name == "__init__.py":
        rest = ["   :no-members:", "", ".. currentmodule:: None", ""]
        titled = [f"{x.rpartition('.')[2]} <{x}>" for x in below]
        rest += [*_directive("toctree", ["hidden"], titled), *_directive("autosummary", [], below)]
    else:
        rest = [
            "   :members:" if public_names(path) else "   :no-members:",
            "   :show-inheritance:",
        ]
    return "\n".join([*title, f".. automodule:: {name}", *rest, ""])


def _directive(name: str, options: list[str], lines: list[str]) -> list[str]:
    indented = [*(f":{option}:" for option in options), "", *lines]
    return [f".. {name}::", *(f"   {line}".rstrip() for line in indented), ""]


def write_pages(folder: Path) -> None:
    """Write all pages into ``folder``; those that are as they should be are left alone."""
    folder.mkdir(exist_ok=True)
    known = modules()
    for old in folder.glob("*.rst"):
        if old.stem not in known:
            old.unlink()
    for name, path in known.items():
        below = [x for x in known if x.rpartition(".")[0] == name]
        text, file = page(name, path, below), folder / f"{name}.rst"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def keep_formulas(app, what, name, obj, options, lines: list[str]) -> None:
    """Make what is indented in a docstring, after a colon and an empty line, stay line by line."""
    for i in range(len(lines) - 2):
        end = lines[i].endswith(":") and not lines[i].endswith("::") and not lines[i + 1]
        if end and _indent(lines[i + 2]) > _indent(lines[i]):
            lines[i] += ":"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def setup(app) -> dict:
    # Before napoleon, which turns sections such as Args into other text.
    app.connect("autodoc-process-docstring", keep_formulas, priority=400)
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "api"))
    return {"parallel_read_safe": True}
