"""Untrusted text in terminals, figures and Markdown."""

import matplotlib.pyplot as plt
import pytest

from aid.utils.errors import AIDError, main_with_clear_errors
from aid.utils.text import counted, figure_text, markdown_cell, markdown_text, one_line, visible


@pytest.mark.parametrize(
    "text, expected",
    [
        ("traffic light_2 (ä, 車)", "traffic light_2 (ä, 車)"),
        ("a\x1b[31mb\x07", r"a\x1b[31mb\x07"),
        ("two\nlines\tand\x9bmore", r"two\nlines\tand\x9bmore"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("gnp.\u202etxt\u2028", r"gnp.\u202etxt\u2028"),
        ("non\u200cjoiner\xa0", "non\u200cjoiner\xa0"),
    ],
)
def test_control_characters_are_escaped(text, expected):
    assert visible(text) == expected
    assert expected.encode()


def test_error_is_one_line_despite_quoted_text(capsys):
    @main_with_clear_errors
    def main():
        raise AIDError("file a\x1b]0;title\x07b\n  of \udce9\rerror: none")

    with pytest.raises(SystemExit):
        main()
    expected = "error: file a\\x1b]0;title\\x07b of \\xe9 error: none\n"
    assert capsys.readouterr().err == expected
    assert one_line(" a \n\n b ") == "a b"
    assert str(AIDError("two\nlines\x85")) == "two lines"  # also in the traceback of a process


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


def test_nouns_of_numbers():
    words = [counted(n, "epoch") for n in (0, 1, 2)]
    assert words == ["0 epochs", "1 epoch", "2 epochs"]
