"""A trained network from Python: images of any kind in, probabilities out, the same as in training."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import mapolicy
from mapolicy import TrainedNetwork, TrainResult, load_network
from mapolicy.data.splits import load_splits
from mapolicy.errors import InputError
from mapolicy.inference.build import built_network
from mapolicy.inference.network import ready_network
from mapolicy.inference.network_file import network_bytes, parse_network_file, read_network_file
from tests.inference.test_network_file import changed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network(trained_run: Path) -> TrainedNetwork:
    return load_network(trained_run)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(path)
    return path


def test_it_is_ready_for_use(network: TrainedNetwork) -> None:
    assert network.classes == tuple("0123456789")
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert isinstance(network, torch.nn.Module)
    assert mapolicy.load_network is load_network


def test_it_sees_what_training_saw(network: TrainedNetwork, make_train_config, trained_result) -> None:
    """Predictions on the test split have the accuracy that training reported, image by image."""
    result: TrainResult = trained_result[0]
    test = load_splits(make_train_config(epochs=1), CPU, "train").test()
    images, labels = next(test.batches([(0, torch.arange(len(test)))]))
    probabilities = network.predict(images)
    assert probabilities.shape == (len(test), 10)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(test)))
    assert 100 * (probabilities.argmax(1) == labels).double().mean() == pytest.approx(result.test_top1)


def test_every_kind_of_image_is_taken(network: TrainedNetwork, photo: Path) -> None:
    with Image.open(photo) as image:
        pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)
        expected = network.predict(photo)
        assert expected.shape == (1, 10)
        for given in (str(photo), [photo], image, [image], pixels, pixels[None], pixels[:1], [pixels]):
            assert torch.equal(network.predict(given), expected), type(given)
        together = network.predict([photo, image, pixels], batch_size=2)
        assert torch.equal(network.predict((each for each in (photo, image, pixels)), batch_size=2), together)
        torch.testing.assert_close(together, expected.repeat(3, 1))
    assert network.predict([]).shape == (0, 10)


@pytest.mark.parametrize(
    "wrong", [3, None, [None], torch.zeros(1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8), [[1]]]
)
def test_what_is_no_image_is_named(network: TrainedNetwork, wrong: object) -> None:
    with pytest.raises(TypeError, match=r"found .*, expected uint8 \[C, H, W\]"):
        network.predict(wrong)


def test_arrays_of_numpy_are_refused_with_how_to_convert_them(network: TrainedNetwork) -> None:
    for wrong in (np.zeros((8, 8, 3), dtype=np.uint8), [np.zeros((8, 8), dtype=np.uint8)]):
        with pytest.raises(TypeError, match=r"found ndarray, .*; torch\.from_numpy or PIL\.Image\.fromarray"):
            network.predict(wrong)


def test_a_pickle_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    (tmp_path / "x.pth").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"x\.pth: is a pickle.*`mapolicy train --weights x\.pth` says how to convert"):
        load_network(tmp_path / "x.pth")


def test_a_file_that_is_no_image_is_named(network: TrainedNetwork, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"text\.jpg: is not an image that Pillow can read; name images"):
        network.predict(tmp_path / "text.jpg")
    with pytest.raises(InputError, match=r"missing\.png: No such file"):
        network.predict([tmp_path / "missing.png"])


def test_its_file_alone_is_enough(network: TrainedNetwork, trained_run: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.safetensors").write_bytes((trained_run / "network.safetensors").read_bytes())
    assert torch.equal(load_network(tmp_path / "elsewhere.safetensors").predict(photo), network.predict(photo))


def test_logits_are_those_of_the_network(network: TrainedNetwork, trained_run: Path) -> None:
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    about = network.config.pretrained_cfg
    inputs = (images / 255 - about.mean[0]) / about.std[0]
    with torch.inference_mode():
        torch.testing.assert_close(network(images), built_network(read_network_file(trained_run))(inputs))
    assert torch.equal(copy.deepcopy(network).predict(images), network.predict(images))


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_timm_prepares_images_as_it_does(resize: str, make_train_config, tiny: Path, tmp_path: Path) -> None:
    """timm's evaluation transform by the file's `pretrained_cfg`: the same pixels, up to rounding at edges."""
    sizes = dict.fromkeys(("train_per_class", "validation_per_class", "test_per_class"), 2)
    config = make_train_config(
        policy="none", dataset=f"folder:{tiny / 'tiny'}", image_size=24, epochs=1, batch_size=4, resize=resize, **sizes
    )
    mapolicy.train_network(config, run_dir=tmp_path / "run")
    network = load_network(tmp_path / "run")
    about = network.config.pretrained_cfg
    transform = timm.data.create_transform(**timm.data.resolve_data_config(about.model_dump()))
    ramp = np.linspace(0, 255, 96)
    picture = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[::2, None], (1, 96)), np.full((48, 96), 99)], 2)
    image = Image.fromarray(picture.astype(np.uint8))
    theirs = transform(image) * torch.tensor(about.std)[:, None, None] + torch.tensor(about.mean)[:, None, None]
    ours = network.pixels(image) / 255
    inside = slice(7, 17) if resize == "pad" else slice(None)  # timm's bars are of another colour
    assert (theirs - ours)[:, inside].abs().max() < 0.03
    assert (theirs - ours.flip(2))[:, inside].abs().max() > 0.2, "a mirrored image is seen"


def test_a_file_that_does_not_say_how_images_are_read_is_refused(trained_run: Path) -> None:
    content = (trained_run / "network.safetensors").read_bytes()
    for field, value in (("value_range", [1, 0]), ("alpha_background", "url(x)"), ("share", True), ("more", 1)):
        with pytest.raises(InputError, match=field):
            ready_network(parse_network_file(changed(content, {f"mapolicy.images.{field}": value}), "f"))
    file = parse_network_file(content, "f")
    assert network_bytes(file.config, file.tensors) == content
