"""Sphinx: `sphinx-build -W docs build/docs` makes the site of README.md and these pages."""

from mapolicy import __version__

project = "mapolicy"
author = "mapolicy developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_mock_imports = ["lightning", "transformers", "accelerate"]  # an extra of few
autodoc_typehints = "none"  # the signature has enough to read; shapes and dtypes are in the text
html_theme = "furo"
html_title = "mapolicy"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
# README and pages are read on code hosts too and link to files that are no pages; tests/test_docs.py follows each link.
suppress_warnings = ["myst.xref_missing", "myst.header"]
