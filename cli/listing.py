"""`mapolicy archs`, `recipes`, `datasets`, `operations`: what there is, all of it or what has a word in it."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import recipes as recipe_files
from ..transforms.space import DEFAULT_SPACE, SPACES, UNITS
from . import display, options

Word = Annotated[str | None, typer.Argument(help="List only what has it in its name or description.")]
Row = dict[str, Any]


def archs(word: Word = None, as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """List the networks that can search or be trained: timm's, and the paper's.

    A network for larger images takes small ones by --model-arg img_size=32 or by --set image_size=64, which enlarges
    them; docs/networks.md says which needs what. Example: mapolicy archs resnet
    """
    from ..models.factory import known_archs

    _list([vars(arch) for arch in known_archs(word)], word, as_json)


def recipes(word: Word = None, as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """List the recipes, with the paper's figure that they aim at. Example: mapolicy recipes pyramidnet"""
    _list([vars(recipe) for recipe in recipe_files.described()], word, as_json)


def datasets(word: Word = None, as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """List the data sets. Example: mapolicy datasets folder"""
    from ..data.dataset_factory import DESCRIPTIONS

    _list([{"name": name, "description": text} for name, text in DESCRIPTIONS.items()], word, as_json)


def operations(word: Word = None, as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """List the operations, with what levels 0 and 10 stand for in each space. Example: mapolicy operations shear"""
    rows = []
    for name, default in SPACES[DEFAULT_SPACE].ranges.items():
        ranges = {space: spread and vars(spread) for space, spread in ((s, SPACES[s].ranges[name]) for s in SPACES)}
        if default is None:
            text = "no level"
        else:
            sign = ", either way" if default.signed else ""
            text = f"{default.at_zero:g} to {default.at_ten:g} {UNITS[name]}{sign}"
        rows.append({"name": name, "description": text, "ranges": ranges})
    _list(rows, word, as_json)


def _list(rows: Sequence[Row], word: str | None, as_json: bool) -> None:
    """Print the rows that have the word in their name or description; each has both."""
    found = [row for row in rows if (word or "").lower() in f"{row['name']} {row['description']}".lower()]
    if as_json:
        display.print_json({"rows": found})
        return
    if found:
        display.print_figures({row["name"]: row["description"] for row in found})
        return
    close = difflib.get_close_matches(word or "", [row["name"] for row in rows], n=3, cutoff=0.0)
    display.note(f"nothing here has {word!r} in it; the closest are {', '.join(close)}")
