"""Extensions in docs/_ext: reference of config keys, module pages and links."""

import os
import re
import sys

import pytest
from detectron2.config import CfgNode

from aid.config import add_aid_config

EXTENSIONS = os.path.join(os.path.dirname(__file__), os.pardir, "docs", "_ext")


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Make the extensions importable, as docs/conf.py does."""
    sys.path.insert(0, EXTENSIONS)
    yield
    sys.path.remove(EXTENSIONS)


@pytest.fixture
def config_reference(load_script):
    return load_script("docs/_ext/config_reference.py")


@pytest.fixture
def repository_links(load_script):
    return load_script("docs/_ext/repository_links.py")


SOURCE = """
def add(cfg):
    # Of the section,
    # on two lines.
    cfg.A = CN()
    cfg.A.X = 1
    cfg.A.Y = [2, 3]  # of Y alone
    # Another.
    cfg.A.Z = "no # comment"

    cfg.A.SILENT = 0.5
"""


def test_comment_applies_to_the_keys_below(config_reference):
    section = "Of the section, on two lines."
    assert config_reference.comments(SOURCE) == {
        "A": (section, ""),
        "A.X": (section, ""),
        "A.Y": (section, "of Y alone"),
        "A.Z": ("Another.", ""),
        "A.SILENT": ("", ""),
    }


def test_keys_with_one_comment_are_grouped(config_reference):
    keys = config_reference.read_keys(SOURCE, {"A.Z": "", "A.Y": [2, 3], "A.X": 1})
    assert config_reference.as_markdown(keys).split("\n\n") == [
        "\n## A",
        "Of the section, on two lines.",
        "* `A.X`, int, `1`\n* `A.Y`, list, `[2, 3]`: of Y alone",
        "Another.",
        "* `A.Z`, str, `''`\n",
    ]


@pytest.mark.parametrize("silent", ["A.SILENT", "A.NOWHERE"])
def test_key_without_a_comment_is_an_error(silent, config_reference):
    with pytest.raises(ValueError, match=f"no comment says what {silent} means"):
        config_reference.read_keys(SOURCE, {"A.X": 1, silent: 0.5})


def test_reference_lists_every_key_with_default_and_type(config_reference):
    listed = re.findall(r"^\* `([\w.]+)`, (\w+), `(.*?)`", config_reference.reference(), re.M)
    cfg = CfgNode({k: CfgNode() for k in ("DATASETS", "INPUT", "MODEL")})
    cfg.SOLVER = CfgNode({"AMP": CfgNode()})
    add_aid_config(cfg)
    defaults = config_reference._flat(cfg)
    assert sorted(listed) == sorted((k, type(v).__name__, repr(v)) for k, v in defaults.items())


def test_links_to_modules_lead_to_their_pages(repository_links):
    package = "../projects/AID/aid/modeling/losses"
    text = (
        f"[`FitNetLoss`]({package}/fitnet.py) [`level`]({package}/fitnet.py)"
        f" [base.py]({package}/base.py) [data](../datasets/README.md#kitti)"
        " [Makefile](../Makefile) [here](method.md#gfl) [a](#b) ![picture](images/a.png) [out](https://example.org/a.py)"
    )
    page = "api/aid.modeling.losses"
    assert repository_links.rewrite(text, "docs/page.md", "page") == (
        "{py:obj}`FitNetLoss <aid.modeling.losses.fitnet.FitNetLoss>`"
        f" [`level`]({page}.fitnet.rst) [base.py]({page}.base.rst) [data](datasets.md#kitti)"
        " [Makefile](../Makefile) [here](method.md#gfl) [a](#b) ![picture](images/a.png) [out](https://example.org/a.py)"
    )


def test_links_of_included_pages_are_adapted(repository_links):
    text = "[a](../docs/own_data.md) [b](prepare_kitti.py)"
    actual = repository_links.rewrite(text, "datasets/README.md", "datasets")
    assert actual == "[a](own_data.md) [b](../datasets/prepare_kitti.py)"


def test_every_module_has_a_page_in_the_toctree(load_script, tmp_path):
    api_pages = load_script("docs/_ext/api_pages.py")
    (tmp_path / "aid.gone.rst").write_text("of a module that was removed")
    api_pages.write_pages(tmp_path)
    written = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    assert written.keys() == api_pages.modules().keys() and "aid.engine.launch" in written
    trees = re.findall(r"^.. toctree::\n(.*?)^\.\.", "".join(written.values()), re.M | re.S)
    listed = [
        x for tree in trees for x in re.findall(r"^   \w+ <(aid(?:_tools)?\.\S+)>$", tree, re.M)
    ]
    assert sorted(["aid", "aid_tools", *listed]) == sorted(written)
    assert "   :members:" in written["aid.engine.launch"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    api_pages.write_pages(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_formulas_in_docstrings_keep_their_lines(load_script):
    api_pages = load_script("docs/_ext/api_pages.py")
    text = "With w:\n\n    a: b\n    c\n\nNext:\n\nNo block\n\nArgs:\n    x: of it"
    lines = text.splitlines()
    api_pages.keep_formulas(None, "class", "name", None, {}, lines)
    assert "\n".join(lines) == text.replace("With w:", "With w::")
