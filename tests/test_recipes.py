"""Recipes: each complete, each headed by the command that runs it, and the two stages agreed on the data."""

import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import timm

import mapolicy.models  # noqa: F401 - registers the paper's networks in timm
from mapolicy import recipes
from mapolicy.config import MACHINE_FIELDS, RunConfig, SearchConfig, TrainConfig
from mapolicy.errors import InputError
from mapolicy.space import SPACES

FOLDER = Path(recipes.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
KINDS: dict[str, type[RunConfig]] = {"search": SearchConfig, "train": TrainConfig}
NETWORK_FLAGS = {"search": "--proxy", "train": "--arch"}
DATA_SETTINGS = (
    "image_size",
    "train_per_class",
    "validation_per_class",
    "test_per_class",
    "split_seed",
    "base_augmentation",
    "cutout",
    "operation_space",
    "fill",
)
EACH = pytest.mark.parametrize("name", NAMES)


def settings(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def head(name: str) -> str:
    """The comment that a recipe opens with."""
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    assert "" in lines
    comment = lines[: lines.index("")]
    assert all(re.match(r"#( |$)", line) for line in comment)
    return "\n".join(line.removeprefix("#").strip() for line in comment)


def command(name: str) -> list[str]:
    (line,) = (line for line in head(name).splitlines() if line.startswith("mapolicy "))
    return shlex.split(line)


def parts(name: str) -> tuple[str, str, str | None]:
    """Stage, data set and network of `stage-dataset[-network]`."""
    stage, dataset, *network = name.split("-")
    return stage, dataset, network[0] if network else None


def test_every_recipe_is_found() -> None:
    assert len(NAMES) == 18
    assert recipes.names() == NAMES


@EACH
def test_complete_and_nothing_more(name: str) -> None:
    stage, dataset, network = parts(name)
    kind, values = KINDS[stage], settings(name)
    generic = {"dataset", kind.network_field} if dataset == "any" else set()
    assert set(values) == {spec.name for spec in fields(kind)} - MACHINE_FIELDS - generic
    config = kind.from_mapping(values | dict.fromkeys(generic, "x"), name)
    assert config.portable() == values | dict.fromkeys(generic, "x")
    assert config.operation_space in SPACES
    if not generic:
        assert config.dataset == dataset
        assert network in (config.network, None)
        assert timm.is_model(config.network)


@EACH
def test_head_is_the_command_that_takes_this_recipe(name: str) -> None:
    stage, dataset, _ = parts(name)
    program, subcommand, *arguments = command(name)
    assert (program, subcommand) == ("mapolicy", stage)
    network = arguments[arguments.index(NETWORK_FLAGS[stage]) + 1]
    assert timm.is_model(network)
    if dataset == "any":
        dataset = "folder:data/birds"
    else:
        assert settings(name)[KINDS[stage].network_field] == network
    if stage == "search":
        assert arguments[0] == dataset
    else:
        assert arguments[:2] == ["--bundle", arguments[1]]
        assert arguments[1].startswith("artifacts/")
    assert recipes.find(stage, dataset, network)[0] == f"recipe {name}"


@pytest.mark.parametrize("name", NAMES)
def test_head_says_cost_and_expectation(name: str) -> None:
    text = " ".join(head(name).split())
    assert re.search(r"\bCost\b", text)
    expectation = re.search(r"[Ee]xpected (test )?accuracy\b.*", text)
    assert expectation
    assert "not measured" in expectation[0] or re.search(r"\d\d\.\d", expectation[0])
    assert not re.search(r"\b(SEARCH|TRAIN|TODO|TBD|XXX)\b", text)


def test_the_stages_agree_on_the_data() -> None:
    by_dataset: dict[str, dict[str, list[Any]]] = {}
    for name in NAMES:
        by_dataset.setdefault(parts(name)[1], {})[name] = [settings(name)[key] for key in DATA_SETTINGS]
    assert sorted(by_dataset) == ["any", "cifar10", "cifar100", "digits", "imagenet", "omniglot"]
    for dataset, group in by_dataset.items():
        assert {parts(name)[0] for name in group} == {"search", "train"}, dataset
        first, *others = group.values()
        assert all(other == first for other in others), dataset


def test_each_search_has_its_training() -> None:
    of_stage = {stage: {name.removeprefix(f"{stage}-") for name in NAMES if parts(name)[0] == stage} for stage in KINDS}
    assert of_stage["search"] == of_stage["train"]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (("search-d-net", "search-d", "search-d-alien", "search-any", "train-d-net"), "search-d-net"),
        (("search-d", "search-d-alien", "search-any", "search-d2-net"), "search-d"),
        (("search-d-alien", "search-d-zeta", "search-any", "search-d2-net"), "search-d-alien"),
        (("search-any", "search-d2", "search-d2-net", "train-d-net", "train-any"), "search-any"),
    ],
)
def test_the_closest_recipe_is_found(there: tuple[str, ...], taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "names", lambda: sorted(there))
    monkeypatch.setattr(recipes, "load", lambda name: (name, {}))
    assert recipes.find("search", "d", "net")[0] == taken


@pytest.mark.parametrize(
    ("stage", "dataset", "network", "taken"),
    [
        ("search", "cifar10", "wrn40_2", "search-cifar10-wrn40_2"),
        ("train", "cifar100", "wrn28_10", "train-cifar100-wrn28_10"),
        ("train", "digits", "resnet10t", "train-digits"),
        ("train", "digits", None, "train-digits"),
        ("search", "imagenet", "resnet18", "search-imagenet-resnet50"),
        ("train", "cifar10", "resnet18", "train-cifar10-wrn28_10"),
        ("search", "cifar10", None, "search-cifar10-wrn28_10"),
        ("search", "folder:data/cifar10", "wrn40_2", "search-any"),
        ("train", "cifar", "wrn40_2", "train-any"),
    ],
)
def test_what_is_found_in_the_package(stage: str, dataset: str, network: str | None, taken: str) -> None:
    assert recipes.find(stage, dataset, network) == (f"recipe {taken}", settings(taken))


def test_by_name_and_by_file(tmp_path: Path) -> None:
    assert recipes.load("search-digits") == ("recipe search-digits", settings("search-digits"))
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\n")
    assert recipes.load(str(path)) == (str(path), {"epochs": 3})


@pytest.mark.parametrize("name", ["nope", "", "search-digits.tom", "../search-digits", "Search-Digits"])
def test_unknown_recipe(name: str) -> None:
    with pytest.raises(InputError) as refusal:
        recipes.load(name)
    assert str(refusal.value).startswith(f"recipe {name}: is not there; name a .toml file, or a recipe such as ")
    assert all(close in NAMES for close in refusal.value.remedy.split(" as ")[1].split(", "))
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="No such file"):
        recipes.load("/nowhere/nope.toml")
