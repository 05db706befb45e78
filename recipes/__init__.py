"""Recipes: flat TOML files, one for each stage, data set and network.

`search-cifar100-wrn28_10.toml` is for that data set and network, `search-cifar100.toml` would be for any network,
`search-any.toml` is for any data set without a recipe of its own. A fourth part, as in
`search-cifar100-wrn28_10-mt4.toml`, makes a variant, which is used only if its name is given.
"""

import difflib
import itertools
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..config.choices import SHORT_NAMES, untagged
from ..errors import InputError
from ..runtime.toml_file import read_toml

ANY = "any"
USUAL_NETWORKS = ("wrn28_10", "resnet50")  # their recipes serve other networks of the data set


@dataclass(frozen=True)
class Description:
    """The description at the head of a recipe.

    Attributes:
        name: the recipe's name.
        description: its purpose, and its target if it has one.
        command: the command that runs it.
        target: the accuracy that it aims at, as the paper prints it; None if there is none.
    """

    name: str
    description: str
    command: str
    target: str | None


def names() -> list[str]:
    """Names of the recipes in the package, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")
    )


def find(stage: str, dataset: str, network: str | None) -> tuple[str, dict[str, Any]]:
    """The closest recipe: of this network, of the data set for any network, of another network, of any data set.

    Returns:
        The recipe's name ("recipe search-digits") and its settings.
    """
    known, network = names(), untagged(SHORT_NAMES.get(network or "", network or ""))
    usual = [f"{stage}-{dataset}-{name}" for name in USUAL_NETWORKS]
    others = [name for name in known if name.startswith(f"{stage}-{dataset}-") and name.count("-") == 2]
    candidates = [f"{stage}-{dataset}-{network}", f"{stage}-{dataset}", *usual, *others, f"{stage}-{ANY}"]
    return load(next(candidate for candidate in candidates if candidate in known))


def head(name: str) -> str:
    """The comment at the start of a recipe: its purpose, command, cost, expected result and target."""
    text = (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line.removeprefix("#").strip() for line in lines)


def described() -> list[Description]:
    """The description of every recipe in the package, sorted by name."""
    found = []
    for name in names():
        text = head(name)
        title, (command,) = text.splitlines()[0].rstrip("."), re.findall(r"^mapolicy .+$", text, re.MULTILINE)
        (target,) = re.findall(r"^Target, [^:]*: (.+)\.$", text, re.MULTILINE) or [None]
        aim = "" if target is None else f" (target: {target})"
        found.append(Description(name, title + aim, command, target))
    return found


def load(name: str) -> tuple[str, dict[str, Any]]:
    """Load a recipe of the package by name, or a TOML file by its path.

    Returns:
        The recipe's name or path, and its settings.

    Raises:
        InputError: there is no such recipe and no such file.
    """
    if name in names():
        with_path = files(__name__) / f"{name}.toml"
        return f"recipe {name}", read_toml(Path(str(with_path)))
    if Path(name).suffix == ".toml":
        return name, read_toml(Path(name))
    close = ", ".join(difflib.get_close_matches(name, names(), n=3, cutoff=0.0))
    raise InputError(f"recipe {name}", "is not there", f"name a .toml file, or a recipe such as {close}")
