"""Images under a policy before a training: which images, what is done to them, and what stands below them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import mapolicy
from mapolicy import PolicyBundle
from mapolicy.bundle.dataset_level import Step
from mapolicy.data.dataset_factory import open_source
from mapolicy.errors import InputError, UsageError
from mapolicy.policy.augmentations import NoAugmentation, PublishedPolicy, SampledSubPolicies, SampledTransformations
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.report.preview import png, preview, some_images
from mapolicy.transforms.auto_augment import RandAugment, TrivialAugmentWide
from mapolicy.transforms.space import OPERATION_SPECS, SPACES
from mapolicy.transforms.transformation import Transformation
from tests.helpers.command_line import save_greys

SPACE = SPACES["metaaugment-v1"]
FILL = torch.tensor([9, 9, 9], dtype=torch.uint8)
STEPS = [
    [
        Step(operation="Rotate", probability=1.0, value=12.5, mirrored=True),
        Step(operation="Equalize", probability=0.5, value=0.0, mirrored=False),
    ],
    [Step(operation="Solarize", probability=1.0, value=96.0, mirrored=False)],
    [],
]
AUGMENTATIONS = {
    "none": NoAugmentation(),
    "uniform": SampledTransformations(TransformationSampler(space=SPACE), SPACE.name),
    "randaugment": PublishedPolicy(RandAugment),
    "trivialaugment": PublishedPolicy(TrivialAugmentWide),
    "sub-policies": SampledSubPolicies(STEPS),
}


class Fixed:
    """Draws these transformations."""

    def sample(self, batch: int, generator: torch.Generator, progress: float | None = None) -> Transformation:
        names = (("Rotate", "Color"), ("Equalize", "Identity"), ("Identity", "Identity"), ("Posterize", "TranslateX"))
        first, second = (torch.tensor([SPACE.names.index(pair[side]) for pair in names]) for side in (0, 1))
        return Transformation(first, second, torch.tensor([-5.0, 1, 1, -10]), torch.tensor([5.0, 1, 1, -10]), SPACE)


def images(count: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_what_is_named_is_what_a_training_does(name: str) -> None:
    augmentation, batch = AUGMENTATIONS[name], images()
    expected, _ = augmentation(batch, FILL, torch.Generator().manual_seed(1))
    found, names = augmentation.named(batch, FILL, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(names) == len(batch)
    for row, text in enumerate(names):
        if text == "unchanged":
            torch.testing.assert_close(found[row], batch[row], rtol=0, atol=0)
        else:
            assert {line.split()[0] for line in text.split("\n")} <= set(OPERATION_SPECS)
    assert name == "none" or len(set(names)) > 2


def test_operations_are_named_with_their_parameters() -> None:
    _, names = SampledTransformations(Fixed(), SPACE.name).named(images(4), FILL, torch.Generator())
    assert names == ["Rotate -15°\nColor 1.45", "Equalize", "unchanged", "Posterize 4\nTranslateX -0.312"]
    _, names = AUGMENTATIONS["sub-policies"].named(images(200), FILL, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    turned = {text for text in names if text.startswith("Rotate")}
    assert turned == {f"Rotate {angle}°{more}" for angle in ("12.5", "-12.5") for more in ("", "\nEqualize")}
    assert set(names) == turned | {"Solarize 96", "unchanged"}


def test_images_are_of_different_classes_and_can_be_read(tmp_path: Path) -> None:
    save_greys(tmp_path / "greys")
    for number in range(19):
        (tmp_path / "greys" / "dark" / f"{number:02}.png").write_bytes(b"no image")
    source = open_source(f"folder:{tmp_path / 'greys'}", tmp_path)
    for seed in range(3):
        found, bad = some_images(source, 4, seed)
        assert len(set(found)) == 4
        assert sorted({source.classes[int(source.pool.labels[index])] for index in found}) == ["dark", "light"]
        assert found == some_images(source, 4, seed)[0]
        assert all(line.startswith("dark/") for line in bad)
    assert some_images(source, 100, 0)[0] != some_images(source, 100, 1)[0]
    assert [len(each) for each in some_images(source, 100, 0)] == [21, 19]
    for path in (tmp_path / "greys").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of its images can be read"):
        some_images(open_source(f"folder:{tmp_path / 'greys'}", tmp_path), 1, 0)


def test_a_notebook_shows_the_picture() -> None:
    picture = mapolicy.preview("digits", policy="trivialaugment", images=2, draws=3)
    assert isinstance(picture, Image.Image)
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert png(picture).startswith(b"\x89PNG")
    wider = preview("digits", policy="trivialaugment", images=2, draws=5)
    assert wider.width > picture.width
    assert wider.height == picture.height


def test_a_bundle_names_policy_and_data_set(bundle: PolicyBundle, bundle_file: Path) -> None:
    first, second = (
        preview(bundle=bundle, images=1, draws=2),
        preview("digits", bundle=str(bundle_file), images=1, draws=2),
    )
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != preview("digits", images=1, draws=2, seed=1).tobytes()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dataset": None}, "no data set was named"),
        ({"policy": "learned"}, "there is no bundle"),
        ({"policy": "best"}, "'best' is not one of"),
        ({"images": 0}, "0 is not at least 1"),
        ({"images": 40, "draws": 10}, "fewer images or draws"),
        ({"colour": "red"}, "unknown setting 'colour'"),
    ],
)
def test_what_cannot_be_drawn(changes: dict, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        preview(**{"dataset": "digits"} | changes)
