"""Weights of one image's transformations: against the bundle's own networks, and images as data sets bring them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mapolicy import PolicyBundle
from mapolicy.data.image_dataset import FileImages
from mapolicy.data.reading import Cropper, ImageReading
from mapolicy.errors import InputError
from mapolicy.report.explain import explain, read_image
from mapolicy.report.sample_weights import SampleWeights
from mapolicy.transforms.parse import parse_transformations

CHOSEN = "Rotate:5,Color:-3; Solarize:9; Equalize; Identity; Brightness:-9.5,TranslateX:4"


def test_each_weight_is_the_policys_output_over_the_mean(bundle: PolicyBundle, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    Image.fromarray(draws.integers(0, 256, (30, 40), dtype=np.uint8)).save(tmp_path / "a.png")
    image = read_image(str(tmp_path / "a.png"), bundle.manifest)
    chosen, sample_weights = parse_transformations(CHOSEN), SampleWeights(bundle, torch.device("cpu"))
    found = explain(sample_weights, image, chosen, "a\x1b[31m.png")
    assert found.name == "a?[31m.png"
    policy = bundle.build_policy()
    raw = []
    for number, text in enumerate(CHOSEN.split(";")):
        single = parse_transformations(text)
        changed = sample_weights.augmented(image[None], single)
        assert torch.equal(found.images[number], changed[0])
        raw.append(policy(sample_weights.extractor(changed), single.embed()).item())
    assert found.weights.tolist() == pytest.approx([value / np.mean(raw) for value in raw], rel=1e-5)
    assert torch.equal(found.images[3], image), "Identity"
    assert [raw[at] for at in found.order()] == sorted(raw, reverse=True)

    rows = found.document()["transformations"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["weight"] for row in rows] == sorted(found.weights.tolist(), reverse=True)
    (row,) = (row for row in rows if row["first"] == "Brightness")
    assert (row["magnitude1"], row["second"], row["magnitude2"]) == (-9.5, "TranslateX", 4)
    assert row["transformation"] == "Brightness:-9.5, TranslateX:4.0"


@pytest.mark.parametrize(("base", "share"), [("flip_crop", 1.0), ("random_resized_crop", 224 / 256)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_brought_to_size_as_a_data_sets(
    bundle: PolicyBundle, tmp_path: Path, base: str, share: float, channels: int
) -> None:
    draws = np.random.default_rng(1)
    Image.fromarray(draws.integers(0, 256, (50, 31, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    contract = bundle.manifest.input.model_copy(update={"size": 16, "channels": channels, "base_augmentation": base})
    found = read_image(str(tmp_path / "b.png"), bundle.manifest.model_copy(update={"input": contract}))
    crop = Cropper(ImageReading(channels, 16, share=share), False, 0, "search")
    expected = crop.central(FileImages(tmp_path, ["b.png"], [0]).read(0))
    assert found.shape == (channels, 16, 16)
    assert np.array_equal(found.numpy(), expected)


def test_an_unreadable_image_is_named(bundle: PolicyBundle, tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(b"no image")
    for name, why in (("c.png", "not an image that Pillow can read"), ("d.png", "No such file"), ("", "is a folder")):
        with pytest.raises(InputError, match=why):
            read_image(str(tmp_path / name), bundle.manifest)
