"""Sphinx: `sphinx-build -W docs build/docs` makes the site of README.md and these pages."""

project = "mapolicy"
author = "the mapolicy team"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "mapolicy"
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
# README and pages are read on code hosts too and link to files that are no pages; tests/test_docs.py follows each link.
suppress_warnings = ["myst.xref_missing", "myst.header"]
