"""Untrusted text in figures and Markdown."""

import matplotlib.pyplot as plt
import pytest

from aid_tools.text import figure_text, markdown_cell, markdown_text


@pytest.mark.parametrize("name", ["$", "a$b$", r"\$x^$", "$\\frac{$", "\udce9\x1b", "a\nb"])
def test_figure_shows_a_name_literally(name):
    figure = plt.figure()
    text = figure.text(0, 0, figure_text(name))
    figure.canvas.draw()  # raises for an invalid formula
    shown, is_formula = text._preprocess_math(text.get_text())
    assert not is_formula and shown == name.replace("\udce9", r"\xe9").replace("\x1b", r"\x1b")
    plt.close(figure)


def test_markdown_shows_a_name_literally():
    hostile = markdown_cell("a|b <!-- end of zoo -->\n| c")
    assert hostile == "a&#124;b &lt;!-- end of zoo -->&#92;n&#124; c"
    assert markdown_cell("traffic_light 2") == "traffic_light 2"
    assert markdown_cell("[a](b)`*\\ [1]") == "[a]&#40;b)&#96;&#42;&#92; [1]"
    assert markdown_text("D < 1 & `a<b`, <b> in `c") == "D &lt; 1 &amp; `a<b`, &lt;b> in `c"
    assert markdown_text("`a` `b<") == "`a` `b&lt;"
    assert markdown_text("two\nlines\x1b") == r"two lines\x1b"
