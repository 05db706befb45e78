"""`mapolicy archs`, `recipes`, `datasets`, `policies`, `operations`: lists of names, all or those with a word."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import recipes as recipe_files
from ..registries import DATASETS
from ..transforms.space import OPERATION_SPECS, SPACES
from . import display, options
from .grouped import grouped

Word = Annotated[str | None, typer.Argument(help="List only names and descriptions that contain it.")]
Row = dict[str, Any]


@grouped
def archs(*, word: Word = None, output: options.Output) -> None:
    """List the networks that can search or be trained.

    They are timm's and the paper's. A network for larger images accepts small ones with --model-arg img_size=32, or
    with --set image_size=64, which enlarges them; docs/networks.md says which network needs what.

    Example: mapolicy archs resnet
    """
    from ..models.factory import known_archs

    _list([vars(arch) for arch in known_archs(word)], word, output)


@grouped
def recipes(*, word: Word = None, output: options.Output) -> None:
    """List the recipes, with the paper's figure that each aims at.

    Example: mapolicy recipes pyramidnet
    """
    _list([vars(recipe) for recipe in recipe_files.described()], word, output)


@grouped
def datasets(*, word: Word = None, output: options.Output) -> None:
    """List the data sets.

    Example: mapolicy datasets folder
    """
    _list([{"name": entry.name, "description": entry.description} for entry in DATASETS.entries()], word, output)


@grouped
def policies(*, word: Word = None, output: options.Output) -> None:
    """List the policies, with source, cost and reported accuracy.

    Figures are the authors', top-1 of WRN-28-10 on CIFAR-10 / CIFAR-100; none was measured here.

    Example: mapolicy policies adversarial
    """
    from ..policy.published import policy_sources

    rows = [{"name": each.name, "description": each.description, **vars(each)} for each in policy_sources()]
    _list(rows, word, output)


@grouped
def operations(*, word: Word = None, output: options.Output) -> None:
    """List the operations and the operation spaces.

    A range goes from level 0 to level 10. --set operation_space=NAME chooses a space.

    Example: mapolicy operations shear
    """
    rows = []
    for entry in OPERATION_SPECS.entries():
        spec, spaces = entry.load(), {space: ranges.ranges for space, ranges in SPACES.items()}
        text = "no level"
        if spec.range is not None:
            sign = ", either way" if spec.range.signed else ""
            text = f"{spec.range.at_zero:g} to {spec.range.at_ten:g} {spec.unit}".rstrip() + sign
        in_spaces = {name: ranges[entry.name] for name, ranges in spaces.items() if entry.name in ranges}
        rows.append(
            {
                "name": entry.name,
                "description": f"{text}; {entry.description}",
                "ranges": {name: spread and vars(spread) for name, spread in in_spaces.items()},
            }
        )
    named = [{"name": entry.name, "description": f"operation space; {entry.description}"} for entry in SPACES.entries()]
    _list(rows, word, output, spaces=named)


def _list(rows: Sequence[Row], word: str | None, output: options.Output, **more: Sequence[Row]) -> None:
    """Print the rows that have the word in their name or description; each has both.

    Args:
        rows: what the command lists.
        word: None prints all.
        output: text or JSON.
        more: further lists, printed below; in JSON they have their own names.
    """
    lists = {
        name: [row for row in each if (word or "").lower() in f"{row['name']} {row['description']}".lower()]
        for name, each in {"rows": rows, **more}.items()
    }
    if output.as_json:
        display.print_json(lists)
        return
    found = [row for each in lists.values() for row in each]
    if found:
        display.print_figures({row["name"]: row["description"] for row in found})
        return
    close = difflib.get_close_matches(word or "", [row["name"] for row in rows], n=3, cutoff=0.0)
    display.note(f"nothing here has {word!r} in it; the closest are {', '.join(close)}")
