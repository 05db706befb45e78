"""Recipes: each complete, each headed by the command that runs it, and the two stages agreed on the data."""

import math
import re
import shlex
import tomllib
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import mapolicy.models  # noqa: F401 - registers the paper's networks in timm
from mapolicy import PolicyBundle, recipes, search_policy, train_network
from mapolicy.config import RunConfig, SearchConfig, TrainConfig
from mapolicy.config.choices import MACHINE_FIELDS, OPTIONAL
from mapolicy.data.stratify import check_sizes
from mapolicy.errors import InputError
from mapolicy.models.factory import check_arch
from mapolicy.registries import DATASETS
from mapolicy.training.callbacks import Reporter
from mapolicy.transforms.space import SPACES

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
GENERAL = ("adversarial", "any", "finetune")  # recipes for every data set and network
NAMED = {"finetune": ("--pretrained", "--arch"), "adversarial": ("--proxy",)}  # which a command takes by name alone
ALONE = {"train-finetune", "search-adversarial"}  # recipes of one stage
OWN = (*GENERAL, "digits")  # recipes that are not the paper's
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


def parts(name: str) -> tuple[str, str, str | None, str | None]:
    """Stage, data set, network and variant of `stage-dataset[-network[-variant]]`."""
    stage, dataset, *rest = name.split("-")
    network, variant, *others = [*rest, None, None]
    assert not any(others)
    return stage, dataset, network, variant


def paper() -> dict[tuple[str, ...], tuple[str, str, str]]:
    """Of each row of docs/paper.md its recipes: the row's name, the paper's figure, ours."""
    rows = {}
    for line in (FOLDER.parent / "docs" / "paper.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and (names := tuple(re.findall(r"`((?:search|train)-[^`]+)`", cells[1]))):
            rows[names] = cells[0], cells[2], cells[3]
    return rows


def test_every_recipe_is_found() -> None:
    assert len(NAMES) == 48
    assert recipes.names() == NAMES


def test_the_papers_rows_are_the_recipes() -> None:
    rows = paper()
    assert len(rows) == 27
    listed = [name for names in rows for name in names]
    assert sorted(listed) == sorted(name for name in NAMES if parts(name)[1] not in OWN)
    assert len(listed) == len(set(listed)) == 42
    for names, (row, figure, ours) in rows.items():
        assert ours == "not measured"
        assert [parts(name)[0] for name in names] in (["search", "train"], ["search"])
        for name in names:
            (target,) = re.findall(r"^Target, MetaAugment's own \(Zhou et al\., AAAI 2021\): (.+)\.$", head(name), re.M)
            assert "not measured" in head(name)
            said = target.partition(" (")[0].replace("+-", "±").replace(" top-1", "").replace(" top-5", "")
            assert said == figure, (row, name)


@pytest.mark.parametrize("name", [name for name in NAMES if parts(name)[3]])
def test_a_variant_differs_in_what_its_row_says(name: str) -> None:
    ours, base = settings(name), settings(name.rpartition("-")[0])
    ((row, *_),) = (value for names, value in paper().items() if name in names)
    (change,) = re.findall(r"`([^`]+)`", row)
    (expected,) = tomllib.loads(change).items()
    assert {key: value for key, value in ours.items() if base[key] != value} == dict([expected])


@EACH
def test_complete_and_nothing_more(name: str) -> None:
    stage, dataset, network, _ = parts(name)
    kind, values = KINDS[stage], settings(name)
    generic = {"dataset", kind.network_field} if dataset in GENERAL else set()
    own = {spec.name for spec in fields(kind)}
    assert set(values) | (OPTIONAL & own) == own - MACHINE_FIELDS - generic
    config = kind.from_mapping(values | dict.fromkeys(generic, "x"), name)
    found = {key: value for key, value in config.to_mapping().items() if key not in MACHINE_FIELDS}
    optional = {key: value for key, value in kind.defaults().items() if key in OPTIONAL}
    assert found == optional | values | dict.fromkeys(generic, "x")
    assert config.operation_space in SPACES
    if not generic:
        assert config.dataset == dataset
        assert network in (config.network, None)
        assert timm.is_model(config.network)


@EACH
def test_head_is_the_command_that_takes_this_recipe(name: str) -> None:
    stage, dataset, _, variant = parts(name)
    program, subcommand, *arguments = command(name)
    assert (program, subcommand) == ("mapolicy", stage)
    if dataset in NAMED:
        assert set(NAMED[dataset]) <= set(arguments)
        assert arguments[arguments.index("--recipe") + 1] == name
        return
    if variant is not None:
        assert arguments[arguments.index("--recipe") + 1] == name
        assert arguments[arguments.index("--out" if stage == "search" else "--bundle") + 1].endswith(
            f"-{variant}.safetensors"
        )
        return
    network = None
    if stage == "train" or dataset not in OWN:  # a search chooses its proxy, or the recipe names it
        network = arguments[arguments.index(NETWORK_FLAGS[stage]) + 1]
        assert timm.is_model(network)
    if dataset == "any":
        dataset = "folder:data/birds"
    else:
        assert settings(name)[KINDS[stage].network_field] == (network or "wrn10_1")
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
    for name in set(NAMES) - ALONE:
        by_dataset.setdefault(parts(name)[1], {})[name] = [settings(name)[key] for key in DATA_SETTINGS]
    assert sorted(by_dataset) == ["any", "cifar10", "cifar100", "digits", "imagenet", "omniglot"]
    for dataset, group in by_dataset.items():
        assert {parts(name)[0] for name in group} == {"search", "train"}, dataset
        first, *others = group.values()
        assert all(other == first for other in others), dataset


def test_each_search_has_its_training() -> None:
    plain = [name for name in NAMES if not parts(name)[3] and name not in ALONE]
    of_stage = {stage: {name.removeprefix(f"{stage}-") for name in plain if parts(name)[0] == stage} for stage in KINDS}
    assert of_stage["search"] == of_stage["train"]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (("search-d-net", "search-d", "search-d-alien", "search-any", "train-d-net"), "search-d-net"),
        (("search-d", "search-d-alien", "search-any", "search-d2-net"), "search-d"),
        (("search-d-alien", "search-d-zeta", "search-any", "search-d2-net"), "search-d-alien"),
        (("search-d-alien", "search-d-resnet50", "search-d-wrn28_10", "search-any"), "search-d-wrn28_10"),
        (("search-d-net-mt4", "search-d-alien-mt4", "search-any"), "search-any"),
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
        ("train", "cifar100", "pyramidnet", "train-cifar100-pyramidnet272_a200"),
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


def test_what_is_listed() -> None:
    described = recipes.described()
    assert [recipe.name for recipe in described] == NAMES
    for recipe in described:
        assert shlex.split(recipe.command) == command(recipe.name)
        assert (recipe.target is None) == (parts(recipe.name)[1] in OWN)
        assert recipe.description.startswith(head(recipe.name).splitlines()[0].rstrip("."))
        assert recipe.target is None or recipe.target in recipe.description


# ---- one tiny iteration of each

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000, "omniglot": 1623, "any": 7}
CLASSES |= {"finetune": 7, "adversarial": 7}
# The smallest relative of a family: the same kinds of layer, in a second.
RELATIVES: dict[str, dict[str, Any]] = {
    "wrn": {"arch": "wrn10_1"},
    "shakeshake26": {"arch": "shakeshake26_2x32d"},
    "pyramidnet": {"arch": "pyramidnet110_a48", "model_args": {"depth": 8}},
    "resnet": {"arch": "test_resnet"},
}
FIRST = {"dataset": "folder:tiny", "proxy": "wrn10_1", "arch": "resnet10t"}  # what the general recipes are told


def resolved(name: str) -> RunConfig:
    kind = KINDS[parts(name)[0]]
    told = {key: FIRST[key] for key in ("dataset", kind.network_field)}
    return kind.from_mapping(told | settings(name))


def shortened(config: RunConfig, folder: Path, side: int) -> RunConfig:
    """One iteration of four images: what a recipe says of optimiser, policy, copies and augmentation is left."""
    return config.with_changes(
        dataset=f"folder:{folder / 'tiny'}",
        image_size=side,
        cutout=min(config.cutout, side // 2),
        train_per_class=2,
        validation_per_class=2,
        test_per_class=2,
        epochs=1,
        warmup_epochs=0,
        batch_size=4,
        validation_batch_size=4,
        workers=0,
        threads=1,
        device="cpu",
        pretrained=False,
    )


@pytest.fixture(scope="session")
def bundles(tiny: Path) -> dict[str, PolicyBundle]:
    """For each operation space a bundle that was searched on the tiny data."""
    searches = {config.operation_space: config for name in NAMES if isinstance(config := resolved(name), SearchConfig)}
    return {
        space: search_policy(shortened(config.with_changes(proxy="wrn10_1", copies=1), tiny, 8))
        for space, config in searches.items()
    }


def run(config: RunConfig, bundles: dict[str, PolicyBundle]) -> dict[str, Any]:
    class Result(Reporter):
        figures: dict[str, Any]

        def on_start(self, what: str, iterations: int, facts: object, seconds: float | None) -> None:
            assert iterations == 1

        def on_complete(self, result: Any) -> None:
            self.figures = dict(result)

    reporter = Result()
    if isinstance(config, SearchConfig):
        searched = search_policy(config, reporter)
        assert PolicyBundle.from_bytes(searched.to_bytes()).manifest.extractor.arch == config.proxy
    else:
        assert isinstance(config, TrainConfig)
        train_network(config, bundles[config.operation_space], reporter)
    return reporter.figures


@cache
def logits_shape(network: str, classes: int, channels: int, side: int) -> tuple[int, ...]:
    """Of two images, found on the meta device."""
    with torch.device("meta"):
        built = timm.create_model(network, num_classes=classes, in_chans=channels).eval()
        return tuple(built(torch.empty(2, channels, side, side)).shape)


@EACH
def test_network_and_data_specification(name: str) -> None:
    config, dataset = resolved(name), parts(name)[1]
    classes = CLASSES[dataset]
    assert dataset in (*DATASETS, *GENERAL)
    check_sizes(
        train_per_class=config.train_per_class,
        validation_per_class=config.validation_per_class,
        test_per_class=config.test_per_class,
    )
    check_arch(config.network)
    channels = 1 if dataset in ("digits", "omniglot") else 3
    assert logits_shape(config.network, classes, channels, config.image_size) == (2, classes)


@EACH
def test_one_tiny_iteration_with_a_relative(name: str, tiny: Path, bundles: dict[str, PolicyBundle]) -> None:
    config = resolved(name)
    ((family, relative),) = ((key, value) for key, value in RELATIVES.items() if config.network.startswith(key))
    changes = {config.network_field if key == "arch" else key: value for key, value in relative.items()}
    figures = run(shortened(config.with_changes(**changes), tiny, 32 if family == "resnet" else 8), bundles)
    assert math.isfinite(figures["weight_spread"])


def test_every_recipe_was_run() -> None:
    assert len({name for name in NAMES for family in RELATIVES if resolved(name).network.startswith(family)}) == len(
        NAMES
    )


@pytest.mark.slow
@EACH
def test_one_tiny_iteration_with_the_network_itself(name: str, tiny: Path, bundles: dict[str, PolicyBundle]) -> None:
    config = resolved(name)
    figures = run(shortened(config, tiny, 64 if config.network.startswith("resnet") else 8), bundles)
    assert math.isfinite(figures["weight_spread"])
