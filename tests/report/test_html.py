"""HTML page of the report: references, content and accessibility."""

import base64
import hashlib
import io
import math
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from PIL import Image

from aid_tools.report.html import to_html
from aid_tools.report.markdown import to_markdown
from aid_tools.report.parts import Table, TableCell, Text

# Elements without an end tag.
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements of a page as (name, attributes), after a check that they are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, *names: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name in names]


@pytest.fixture
def page(html):
    return Page(html)


def test_page_has_no_external_references(page, html):
    for name, attributes in page.elements:
        assert not any(x.startswith("on") or x in ("style", "srcset") for x in attributes), name
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    assert not page.all("link", "iframe", "object", "form", "base")
    assert "url(" not in html and "@import" not in html


def test_policy_allows_only_the_inline_script_and_style(page):
    (policy,) = (x["content"] for x in page.all("meta") if "http-equiv" in x)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for name in ("style", "script"):
        (content,) = page.texts[name]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"


def test_table_of_contents_links_to_the_sections(page):
    targets = [x["href"].removeprefix("#") for x in page.all("a")]
    assert targets == [x["id"] for x in page.all("h2")] and len(targets) == 2
    assert [x["aria-labelledby"] for x in page.all("section")] == targets
    assert page.texts["a"] == page.texts["h2"]


def test_names_are_escaped(page):
    assert len(page.all("img")) == 2 and len(page.all("script")) == 1
    shown = "".join(x for texts in page.texts.values() for x in texts)
    # Title twice, header, caption, row and cell of a table, text, heading and its entry.
    assert shown.count('onerror="document.title = 1"') == 9
    assert page.texts["code"] == ["code", "not"]


def test_images_are_embedded_and_have_alternative_text(page, tmp_path):
    decoded = []
    for image in page.all("img"):
        kind, content = image["src"].split(",")
        assert kind == "data:image/png;base64" and image["alt"]
        decoded.append(Image.open(io.BytesIO(base64.b64decode(content, validate=True))))
        decoded[-1].load()
    small, large = decoded
    assert small.size == (900, 60) and small.mode == "RGB"
    with Image.open(tmp_path / "small.png") as original:
        assert small.tobytes() == original.tobytes()
    with Image.open(tmp_path / "large.png") as original:
        assert large.size == original.size and large.mode == "P"


def test_cells_hold_numbers_for_sorting(page):
    values = [float(x["data-value"]) for x in page.all("td") if "data-value" in x]
    assert values == [9.5, 9.5, 10.25, 10.25, -1, -1] and all(map(math.isfinite, values))
    assert page.texts["caption"][-1] == "empty"
    assert {x["scope"] for x in page.all("th")} == {"col", "row"}
    assert len(page.all("caption")) == len(page.all("table")) == 2


def test_outcome_is_between_title_and_contents(parts, tmp_path):
    text = to_html("title", [Text("First."), Text("`Second`."), *parts], str(tmp_path))
    lead = '<div class="lead">\n<p>First.</p>\n<p><code>Second</code>.</p>\n</div>\n<nav '
    assert f"<h1>title</h1>\n{lead}" in text and text.count("First.") == 1
    assert Page(text).all("div")[0] == {"class": "lead"}


def test_markdown_has_the_same_content(parts):
    text = to_markdown("title", parts)
    assert text.startswith("# title\n\n| run")
    assert "\n\n## Pictures\n\n![noise" in text and "](small.png)" in text
    assert "| b" in text and "9.50 M" in text and "`code`" in text


def test_hostile_names_break_neither_markdown_nor_html():
    """Names keep rows and columns intact, and control characters are escaped."""
    name = "a|b\x1b[31m\n<!-- x --> `c`"
    parts = [Text(f"Of {name}"), Table(name, ["run", name], [[TableCell(name), TableCell("1")]])]
    text = to_markdown(name, parts)
    title, _, paragraph, _, *rows = text.splitlines()
    assert title.startswith("# a|b\\x1b[31m &lt;!--") and paragraph.startswith("Of a|b\\x1b")
    assert len(rows) == 3 and all(row.count("|") == 3 for row in rows)
    page = Page(to_html(name, parts, ""))
    for written in (text, "".join(x for y in page.texts.values() for x in y)):
        assert "\x1b" not in written
    assert page.texts["td"] == ["1"] and r"a|b\x1b[31m\n<!-- x --> `c`" in page.texts["th"]


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_has_sufficient_contrast(scheme):
    """Contrasts of WCAG 2.1, level AA, for each color scheme."""
    style = files("aid_tools.report").joinpath("page.css").read_text()
    block = re.findall(r":root \{([^}]*)\}", style)[scheme]
    colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for background in ("page", "stripe"):
        for text, minimum in (("text", 7), ("muted", 4.5), ("link", 4.5)):
            assert contrast(colors[text], colors[background]) >= minimum, (text, background)


def contrast(a: str, b: str) -> float:
    dark, light = sorted(map(luminance, (a, b)))
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(k * x for k, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
