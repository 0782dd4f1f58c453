"""Links between the pages of the repository, as they are in it: files, anchors and names."""

import ast
import glob
import os
import re

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGES = sorted(
    os.path.relpath(path, ROOT)
    for pattern in ("*.md", "docs/*.md", "docs/results/*.md", "datasets/*.md", "projects/AID/*.md")
    for path in glob.glob(os.path.join(ROOT, pattern))
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def prose(page: str) -> str:
    """A page without its blocks of code, fenced or indented."""
    with open(os.path.join(ROOT, page)) as f:
        text = re.sub(r"^```.*?^```", "", f.read(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<=\n\n)(?:    .*\n+)+", "", text)


def anchors(page: str) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE):
        text = LINK.sub(r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


def defined_names(path: str) -> set[str]:
    """Functions, classes, methods and constants of a Python file."""
    with open(os.path.join(ROOT, path)) as f:
        nodes = list(ast.walk(ast.parse(f.read())))
    named = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [t for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
    return named | {t.id for t in targets if isinstance(t, ast.Name)}


def broken_links(page: str) -> list[str]:
    broken = []
    for text, target in LINK.findall(prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        name = re.fullmatch(r"`(\w+)`", text)
        if (
            not os.path.exists(os.path.join(ROOT, path))
            or (anchor and anchor not in anchors(path))
            or (name and path.endswith(".py") and name[1] not in defined_names(path))
        ):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_is_there(page):
    assert broken_links(page) == []


def test_what_leads_nowhere_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", str(tmp_path))
    (tmp_path / "code.py").write_text("def there(): pass\n")
    good = "[a](#its-heading) [`there`](code.py) [text](code.py) [w](https://example.org/none)"
    (tmp_path / "page.md").write_text(
        f"# Its `heading`!\n\n{good}\n[b](#none) [`gone`](code.py) [c](none.md)\n\n"
        "    [in a block](none)\n\n```sh\n# None\n[another](none)\n```\n"
    )
    assert broken_links("page.md") == ["#none", "code.py", "none.md"]


def test_every_page_is_in_the_index():
    with open(os.path.join(ROOT, "docs", "index.md")) as f:
        trees = re.findall(r"```{toctree}\n(.*?)```", f.read(), flags=re.DOTALL)
    listed = {line for tree in trees for line in tree.splitlines() if line and line[0] != ":"}
    pages = {os.path.relpath(p, "docs")[:-3] for p in PAGES if p.startswith("docs/")}
    assert listed - {"Modules <api/aid>", "Tools <api/aid_tools>"} == pages - {"index"}
