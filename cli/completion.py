"""What the shell completes after a word's beginning: names of data sets, policies, recipes and settings.

Nothing here imports torch: a shell waits for the answer.
"""

from collections.abc import Iterator

from .. import recipes as recipe_files
from ..config import SearchConfig, TrainConfig
from ..registries import DATASETS, SEARCHED_POLICIES, ZERO_COST_POLICIES

Found = Iterator[tuple[str, str]]


def datasets(incomplete: str) -> Found:
    """Names of data sets with what they are; of a family only the part before the name."""
    for entry in DATASETS.entries():
        name = entry.name.removesuffix("PATH").removesuffix("NAME")
        if name.startswith(incomplete):
            yield name, entry.description


def policies(incomplete: str) -> Found:
    """Names that `--policy` takes."""
    known = {**SEARCHED_POLICIES, **{entry.name: entry.description for entry in ZERO_COST_POLICIES.entries()}}
    yield from ((name, text) for name, text in known.items() if name.startswith(incomplete))


def recipes(incomplete: str) -> Found:
    """Names of recipes."""
    yield from (
        (recipe.name, recipe.description) for recipe in recipe_files.described() if recipe.name.startswith(incomplete)
    )


def settings(incomplete: str) -> Found:
    """Names of settings, with the equals sign that `--set` wants."""
    found = {**SearchConfig.settings(), **TrainConfig.settings()}
    described = ((f"{name}=", setting.description or "") for name, setting in found.items())
    yield from (each for each in described if each[0].startswith(incomplete))
