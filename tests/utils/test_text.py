"""Untrusted text in terminals."""

import pytest

from aid.utils.errors import AIDError, main_with_clear_errors
from aid.utils.text import counted, one_line, visible


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


def test_nouns_of_numbers():
    words = [counted(n, "epoch") for n in (0, 1, 2)]
    assert words == ["0 epochs", "1 epoch", "2 epochs"]
    assert [counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
