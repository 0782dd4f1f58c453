"""Links of the pages, which are those of the repository, as links of the HTML.

In the repository a page links to files beside docs/ by their path. Here a link to a page of
:data:`PAGES` leads to its copy, one to a file of the package to the page about its module, and one
whose text is a name in such a file to what is said of that name. Other files are downloads.
"""

import os
import re
from pathlib import Path

from api_pages import modules, public_names

ROOT = Path(__file__).resolve().parents[2]
# Pages outside of docs/, whose text takes the place of that of a page there.
PAGES = {
    "datasets": "datasets/README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "model_zoo": "MODEL_ZOO.md",
}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def rewrite(text: str, source: str, page: str) -> str:
    """The text of a page with the links that it has in the HTML.

    Args:
        text: in Markdown.
        source: path of its file in the repository, to which its links are relative.
        page: of the HTML that it becomes, without extension.
    """
    known = {str(path.relative_to(ROOT)): name for name, path in modules().items()}
    copies = {path: f"docs/{name}.md" for name, path in PAGES.items()}
    here = os.path.dirname(f"docs/{page}")

    def link(match: re.Match) -> str:
        text, anchor = match["text"], match["anchor"] or ""
        path = os.path.normpath(os.path.join(os.path.dirname(source), match["path"]))
        if path in known:
            name = text.strip("`")
            if name in public_names(ROOT / path):
                return f"{{py:obj}}`{name} <{known[path]}.{name}>`"
            path = f"docs/api/{known[path]}.rst"
        target = os.path.relpath(copies.get(path, path), here)
        return f"{match['image']}[{text}]({target}{anchor})"

    return LINK.sub(link, text)


def on_source_read(app, docname: str, content: list[str]) -> None:
    if docname.startswith("api/"):
        return
    source = PAGES.get(docname, f"docs/{docname}.md")
    if docname in PAGES:
        content[0] = (ROOT / source).read_text()
        app.env.note_dependency(str(ROOT / source))
    content[0] = rewrite(content[0], source, docname)


def setup(app) -> dict:
    app.connect("source-read", on_source_read)
    return {"parallel_read_safe": True}
