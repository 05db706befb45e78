"""Exported policies: loaded as their users load them, and compared with the operations they stand for."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from mapolicy.bundle.export import FORMS, export, omissions, omissions_of
from mapolicy.bundle.format import level_probabilities, parse_bundle
from mapolicy.bundle.manifest import Operations
from mapolicy.transforms.functional import apply_operation
from mapolicy.transforms.space import OPERATION_NAMES, SPACES
from tests.helpers.bundle_factory import LEVELS, draft, draft2, forge, log_levels, raw, small_tensors2

VALUES = np.random.default_rng(0).random((14, 14)) ** 4
COLOURS = {"size": 32, "channels": 3, "mean": [0.25, 0.5, 0.75], "std": [0.2] * 3}


def text(form: str, space: str = "metaaugment-v1", fill: str = "mean") -> str:
    contract = {**COLOURS, "base_augmentation": "none", "cutout": 0}
    base = draft(operations=Operations.of(space, fill), input=contract)
    return export(*parse_bundle(forge(base=base, sampler__probabilities=raw(VALUES / VALUES.sum())), "x"), form)


def load(tmp_path: Path, **kind: str) -> ModuleType:
    return imported(text("torchvision", **kind), tmp_path)


def imported(source: str, tmp_path: Path) -> ModuleType:
    path = tmp_path / "policy.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("exported", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ours(name: str, images: torch.Tensor, level: float, space: str = "metaaugment-v1") -> torch.Tensor:
    index = torch.full((len(images),), OPERATION_NAMES.index(name))
    fill = torch.tensor([64, 128, 191], dtype=torch.uint8)
    return apply_operation(images, index, torch.full((len(images),), level), space, fill)


# torchvision


def test_pairs_come_as_often_as_p_jk_says(tmp_path: Path) -> None:
    module = load(tmp_path)
    drawn: list[str] = []

    class Noted(v2.Transform):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            drawn.append(self.name)
            return image

    policy = module.policy({name: Noted(name) for name in OPERATION_NAMES})
    torch.manual_seed(0)
    draws = 20_000
    for _ in range(draws):
        policy(torch.zeros(1))
    counts = Counter(zip(drawn[::2], drawn[1::2], strict=True))
    expected = VALUES / VALUES.sum()
    for j, first in enumerate(OPERATION_NAMES):
        for k, second in enumerate(OPERATION_NAMES):
            deviation = (expected[j, k] * (1 - expected[j, k]) / draws) ** 0.5
            assert abs(counts[first, second] / draws - expected[j, k]) < 5 * deviation + 1 / draws


def test_every_operation_runs_on_grey_and_colour(tmp_path: Path, images: torch.Tensor) -> None:
    from PIL import Image

    table = load(tmp_path).operations()
    assert tuple(table) == OPERATION_NAMES
    for operation in table.values():
        assert operation(images[0]).dtype == torch.uint8
        assert operation(images[0]).shape == images[0].shape
        assert operation(Image.new("RGB", (32, 32))).size == (32, 32)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Identity"])
def test_operations_without_magnitude_give_our_pixels(name: str, tmp_path: Path, images: torch.Tensor) -> None:
    dark = (images // 2).to(torch.uint8)
    theirs = torch.stack([load(tmp_path).operations()[name](image) for image in dark])
    assert (theirs.int() - ours(name, dark, 0.0).int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["Posterize", "Solarize", "Sharpness"])
@pytest.mark.parametrize("space", ["metaaugment-v1", "wide"])
def test_binned_operations_are_ours_at_the_bins(name: str, space: str, tmp_path: Path, images: torch.Tensor) -> None:
    operation = load(tmp_path, space=space).operations()[name]
    levels = [part + 0.5 for part in range(10)]
    signed = name == "Sharpness"
    assert len(operation.transforms) == (20 if signed else 10)
    for transform, level in zip(operation.transforms, [-level for level in levels] * signed + levels, strict=True):
        expected = ours(name, images, level, space)
        # Rounding of the border and of halves differs in blends alone.
        inner = slice(1, -1) if signed else slice(None)
        difference = (transform(images).int() - expected.int())[..., inner, inner].abs().max()
        assert difference <= (2 if signed else 0), level


@pytest.mark.parametrize("space", SPACES)
def test_continuous_operations_have_our_ranges(space: str, tmp_path: Path) -> None:
    table, ranges = load(tmp_path, space=space).operations(), SPACES[space].ranges
    assert table["Rotate"].degrees == [-ranges["Rotate"].at_ten, ranges["Rotate"].at_ten]
    for name, attribute in (("Color", "saturation"), ("Contrast", "contrast"), ("Brightness", "brightness")):
        assert getattr(table[name], attribute) == pytest.approx((1 - ranges[name].at_ten, 1 + ranges[name].at_ten))
    assert table["TranslateX"].translate == (pytest.approx(ranges["TranslateX"].at_ten), 0)
    assert table["TranslateY"].translate == (0, pytest.approx(ranges["TranslateY"].at_ten))
    for name, places in (("ShearX", (0, 1)), ("ShearY", (2, 3))):
        slopes = np.tan(np.radians([table[name].shear[place] for place in places]))
        assert slopes == pytest.approx([-ranges[name].at_ten, ranges[name].at_ten], rel=1e-6)


@pytest.mark.parametrize(("fill", "colour"), [("mean", [64, 128, 191]), ("black", [0, 0, 0])])
def test_the_fill_is_the_bundles(fill: str, colour: list[int], tmp_path: Path) -> None:
    assert colour == load(tmp_path, fill=fill).FILL


def test_equal_bundles_give_equal_files_that_say_what_they_lack() -> None:
    for form in FORMS:
        assert text(form) == text(form)
    for omission in omissions("torchvision"):
        assert omission in text("torchvision")
    assert any("Sharpness" in omission for omission in omissions("albumentations"))


# albumentations


def test_the_json_is_a_weighted_choice_of_pairs() -> None:
    document = json.loads(text("albumentations"))
    (choice,) = document["transform"]["transforms"]
    assert choice["__class_fullname__"] == "OneOf"
    shares = np.array([member["p"] for member in choice["transforms"]]).reshape(14, 14)
    np.testing.assert_allclose(shares, VALUES / VALUES.sum(), rtol=1e-6)
    rotate = choice["transforms"][2 * 14 + 2]["transforms"]
    assert [node["rotate"] for node in rotate] == [[-30, 30], [-30, 30]]


def test_albumentations_loads_it(tmp_path: Path) -> None:
    albumentations = pytest.importorskip("albumentations", minversion="2.0")
    (tmp_path / "policy.json").write_text(text("albumentations"))
    policy = albumentations.load(tmp_path / "policy.json")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for _ in range(300):
        assert policy(image=image)["image"].shape == image.shape


# Bundles with levels


def levels_text(form: str, **changes) -> str:
    contract = {**COLOURS, "base_augmentation": "none", "cutout": 0}
    return export(*parse_bundle(forge(None, small_tensors2(), draft2(input=contract, **changes)), "x"), form)


def load_levels(tmp_path: Path) -> ModuleType:
    return imported(levels_text("torchvision"), tmp_path)


@pytest.mark.parametrize("name", OPERATION_NAMES)
@pytest.mark.parametrize("level", [-9.0, -2.5, 2.5, 9.0])
def test_operations_of_levels_give_our_pixels(name: str, level: float, tmp_path: Path, images: torch.Tensor) -> None:
    """Directions included."""
    spread = SPACES["metaaugment-v1"].ranges[name]
    value = 0.0
    if spread is not None:
        value = spread.at_zero + (spread.at_ten - spread.at_zero) * abs(level) / 10
        value = -value if spread.signed and level < 0 else value
    theirs = load_levels(tmp_path).OPERATIONS[name](images, value)
    assert (theirs.int() - ours(name, images, level).int()).abs().max() <= 1


def test_cells_come_as_often_as_the_policy_draws_them(tmp_path: Path) -> None:
    module = load_levels(tmp_path)
    drawn: list[tuple[str, float]] = []
    policy = module.policy(
        {name: lambda image, value, name=name: drawn.append((name, value)) for name in OPERATION_NAMES}
    )
    torch.manual_seed(0)
    for _ in range(5_000):
        policy(torch.zeros(1))
    shares = level_probabilities(log_levels(), 30.0)
    assert sum(probability for *_, probability in module.CELLS) == pytest.approx(1)
    for name, share in zip(OPERATION_NAMES, shares.sum(1), strict=True):
        found = sum(each == name for each, _ in drawn) / len(drawn)
        assert abs(found - share) < 5 * (share * (1 - share) / len(drawn)) ** 0.5 + 1e-3
    degrees = [value for name, value in drawn if name == "Rotate"]
    assert sum(abs(value) > 15 for value in degrees) < 0.1 * len(degrees), "beyond level 5 it is hardly ever drawn"
    thresholds = [value for name, value in drawn if name == "Solarize"]
    assert 0 <= min(thresholds) < 20
    assert 236 < max(thresholds) <= 256


def test_a_levels_policy_runs_on_grey_colour_and_pillow(tmp_path: Path, images: torch.Tensor) -> None:
    from PIL import Image

    policy = load_levels(tmp_path).policy()
    for _ in range(100):
        assert policy(images[0]).dtype == torch.uint8
        assert policy(Image.new("RGB", (32, 32))).size == (32, 32)


def test_the_json_of_levels_draws_twice_from_the_same_cells() -> None:
    document = json.loads(levels_text("albumentations"))
    first, second = document["transform"]["transforms"]
    assert first == second
    assert sum(member["p"] for member in first["transforms"]) == pytest.approx(1)
    rotations = [
        (member["transforms"][0]["rotate"], member["p"])
        for member in first["transforms"]
        if "rotate" in member["transforms"][0]
    ]
    assert [ends for ends, _ in rotations] == [[-30, -15], [-15, 0], [0, 15], [15, 30]]
    shares = level_probabilities(log_levels(), 30.0)[OPERATION_NAMES.index("Rotate")]
    assert [share for _, share in rotations] == pytest.approx(list(shares))


def test_losses_of_a_policy_with_levels_are_named() -> None:
    for form in FORMS:
        assert levels_text(form) == levels_text(form)
        lost = omissions_of(draft2(), form)
        assert any("stages of a run" in each for each in lost)
        assert any("weights P_i" in each for each in lost)
        equal = omissions_of(draft2(search={"settings": {"weighting": "equal"}}), form)
        assert not any("weights P_i" in each for each in equal)
    for omission in omissions_of(draft2(), "torchvision"):
        assert omission in levels_text("torchvision")
    one = draft2(levels=LEVELS | {"stages": 1})
    assert not any("stages of a run" in each for each in omissions_of(one, "torchvision"))
