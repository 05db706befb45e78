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

from mapolicy.bundle.export import FORMS, export, omissions
from mapolicy.bundle.format import parse_bundle
from mapolicy.bundle.manifest import Operations
from mapolicy.transforms.functional import apply_operation
from mapolicy.transforms.space import OPERATION_NAMES, SPACES
from tests.helpers.bundle_factory import draft, forge, raw

VALUES = np.random.default_rng(0).random((14, 14)) ** 4
COLOURS = {"size": 32, "channels": 3, "mean": [0.25, 0.5, 0.75], "std": [0.2] * 3}


def text(form: str, space: str = "metaaugment-v1", fill: str = "mean") -> str:
    contract = {**COLOURS, "base_augmentation": "none", "cutout": 0}
    base = draft(operations=Operations.of(space, fill), input=contract)
    return export(*parse_bundle(forge(base=base, sampler__probabilities=raw(VALUES / VALUES.sum())), "x"), form)


def load(tmp_path: Path, **kind: str) -> ModuleType:
    path = tmp_path / "policy.py"
    path.write_text(text("torchvision", **kind))
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
