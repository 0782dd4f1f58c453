"""Fixtures: a small report with all kinds of parts."""

import numpy as np
import pytest
from PIL import Image

from aid_tools.report.html import to_html
from aid_tools.report.parts import Heading, ReportFigure, Table, TableCell, Text, number

HOSTILE = '<img src="http://example.org/x.png" onerror="document.title = 1">'


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Tables and two figures, in ``tmp_path``; texts that contain HTML code."""
    monkeypatch.setattr("aid_tools.report.html.FULL_COLOR_PIXELS", 900 * 60)
    generator = np.random.default_rng(0)
    for name, shape in (("small.png", (60, 900, 3)), ("large.png", (60, 1000, 3))):
        pixels = generator.integers(0, 255, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    values = [("b", 9.5), ("c", 10.25), ("a", float("nan")), (HOSTILE, -1.0)]
    rows = [
        [TableCell(name), TableCell(name), number(x), number(x, "{:.2f} M")] for name, x in values
    ]
    return [
        Table(f"results {HOSTILE}", ["run", HOSTILE, "AP", "parameters"], rows),
        Text(f"An introduction with `code` & {HOSTILE}"),
        Heading("Pictures"),
        ReportFigure("small.png", f"noise {HOSTILE}", "How to read it: `not`."),
        ReportFigure("large.png", "more noise", "In 256 colors."),
        Heading(f"Last {HOSTILE}"),
        Table("empty", ["group", "instances"], []),
    ]


@pytest.fixture
def html(parts, tmp_path):
    """HTML page of the report."""
    return to_html(f"title {HOSTILE}", parts, str(tmp_path))
