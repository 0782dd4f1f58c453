"""The documentation as pages of HTML: `make docs`."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent / "projects/AID")]

import aid  # noqa: E402

project = "AID on Detectron2"
version = release = aid.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "api_pages",
    "config_reference",
    "repository_links",
    # Formulas without a network: copies MathJax into the pages.
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_ext"]
html_theme = "furo"
html_title = project
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["math.css"]
html_search_scorer = str(DOCS / "_ext/search_scorer.js")
# Quotes in values of keys stay as they are typed.
smartquotes = False

# GitHub's anchors, and its blocks of math.
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]
# Trees and commands are not highlighted.
highlight_language = "none"

autodoc_default_options = {"special-members": "__init__"}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def setup(app):
    # In place of its default, whose fonts browsers may refuse to load for pages on disk.
    app.config.mathjax_path = "mathjax/tex-svg.js"
