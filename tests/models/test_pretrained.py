"""Weights that a network starts from, against what timm itself makes of them; nothing is unpickled."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mapolicy.cli.main import fail
from safetensors.torch import save, save_file, save_model
from torch import Tensor, nn

from mapolicy.config import TrainConfig
from mapolicy.errors import EnvironmentFault, InputError, UsageError
from mapolicy.models.factory import build_network
from mapolicy.models.pretrained import (
    NetworkInput,
    StartWeights,
    freeze_body,
    load_weights,
    network_input,
    normalisation_of,
    start_weights,
)
from tests.helpers.settings import TINY

CPU = torch.device("cpu")
IMAGE_NET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def config(arch: str = "test_resnet", **changes: Any) -> TrainConfig:
    return TrainConfig(dataset="digits", arch=arch, **{**TINY, **changes})


def trained(name: str = "test_resnet", classes: int = 1000, channels: int = 3, **arguments: Any) -> dict[str, Tensor]:
    """Weights that stand for pretrained ones: random, of another seed, and no constant among them."""
    torch.manual_seed(7)
    network = timm.create_model(name, num_classes=classes, in_chans=channels, **arguments)
    state = network.state_dict()
    return {key: torch.rand_like(value) + 0.1 if value.is_floating_point() else value for key, value in state.items()}


def stored(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    path = folder / "weights.safetensors"
    save_file(tensors, path, metadata)
    return str(path)


def started(settings: TrainConfig, classes: int, channels: int) -> tuple[nn.Module, tuple[str, ...]]:
    weights = start_weights(settings)
    assert weights is not None
    network = build_network(settings.arch, settings.model_args, classes, channels, 0, CPU)
    return network, load_weights(network, weights, settings.arch, classes, channels)


@pytest.mark.parametrize(
    ("name", "arguments", "channels"),
    [
        ("test_resnet", {}, 3),
        ("test_resnet", {}, 1),
        ("test_vit", {"img_size": 64}, 3),
        ("test_convnext", {}, 1),
        ("coat_lite_tiny", {}, 3),
    ],
)
def test_the_body_is_what_timm_loads_and_the_classifier_is_new(
    name: str, arguments: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    path = stored(tmp_path, {key: value.clone() for key, value in trained(name).items()})
    network, left_out = started(config(name, weights=path, model_args=arguments), 4, channels)
    overlay = {"file": path, "hf_hub_id": None}
    expected = timm.create_model(
        name, pretrained=True, num_classes=4, in_chans=channels, pretrained_cfg_overlay=overlay, **arguments
    ).state_dict()
    fresh = build_network(name, arguments, 4, channels, 0, CPU).state_dict()
    classifier = {f"{network.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias")}
    for key, value in network.state_dict().items():
        assert torch.equal(value, fresh[key] if key in classifier else expected[key]), key
    assert left_out == ("the classifier is new: the weights have 1000 classes, the data has 4",)
    assert "state_dict" not in network.pretrained_cfg, "the weights are not kept twice"


def test_a_warm_start_of_as_many_classes_and_channels_takes_everything(tmp_path: Path) -> None:
    tensors = trained("wrn10_1", classes=4, channels=1)
    network, left_out = started(config("wrn10_1", weights=stored(tmp_path, tensors)), 4, 1)
    assert left_out == ()
    assert all(torch.equal(value, tensors[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("names", [("Three", "five", "one", "two"), ("b", "a", "c", "d")])
def test_a_classifier_of_other_classes_is_new_even_if_they_are_as_many(names: tuple[str, ...], tmp_path: Path) -> None:
    tensors = trained("wrn10_1", classes=4, channels=1)
    about = {"config.json": json.dumps({"label_names": ["a", "b", "c", "d"]})}
    weights = start_weights(config("wrn10_1", weights=stored(tmp_path, tensors, about)))
    assert weights is not None
    assert weights.classes == ("a", "b", "c", "d")
    for found, same in ((names, False), (weights.classes, True), ((), True)):
        network = build_network("wrn10_1", {}, 4, 1, 0, CPU)
        left_out = load_weights(network, weights, "wrn10_1", 4, 1, found)
        classifier = f"{network.pretrained_cfg['classifier']}."
        for key, value in network.state_dict().items():
            assert torch.equal(value, tensors[key]) == (same or not key.startswith(classifier)), key
        told = f"the classifier is new: the weights have the classes a, b, c, d, the data has {', '.join(names)}"
        assert left_out == (() if same else (told,))


def test_grey_weights_become_colour_weights(tmp_path: Path) -> None:
    """timm repeats the one channel, so that a grey image in three channels gives what it gave in one."""
    path = stored(tmp_path, trained("test_resnet", classes=4, channels=1))
    grey, colour = (started(config(weights=path), 4, channels)[0].eval() for channels in (1, 3))
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(colour(images.expand(-1, 3, -1, -1)), grey(images), rtol=1e-4, atol=1e-4)


def test_tensors_that_are_stored_once_have_all_their_names_again(tmp_path: Path) -> None:
    torch.manual_seed(7)
    there = timm.create_model("coat_lite_tiny", num_classes=4, img_size=32)
    save_model(there, str(tmp_path / "shared.safetensors"))
    settings = config("coat_lite_tiny", weights=str(tmp_path / "shared.safetensors"), model_args={"img_size": 32})
    network, left_out = started(settings, 4, 3)
    assert left_out == ()
    assert all(torch.equal(value, there.state_dict()[key]) for key, value in network.state_dict().items())


def test_what_was_not_loaded_is_named(tmp_path: Path) -> None:
    tensors = trained(classes=4)
    del tensors["layer4.0.conv2.weight"]
    _, left_out = started(config(weights=stored(tmp_path, {**tensors, "aux.weight": torch.ones(3)})), 4, 3)
    assert left_out == ("start from random values: layer4.0.conv2.weight", "not used of the weights: aux.weight")


@pytest.mark.parametrize("prefix", ["model.", "module.", "net.model."])
def test_a_prefix_of_all_names_is_removed(prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training frameworks store a network as a part of their own module."""
    tensors = trained(classes=4)
    path = stored(tmp_path, {f"{prefix}{name}": tensor for name, tensor in tensors.items()})
    network, left_out = started(config(weights=path), 4, 3)
    assert left_out == ()
    assert all(torch.equal(value, tensors[key]) for key, value in network.state_dict().items())
    odd = stored(tmp_path, {f"{name}_x": tensor for name, tensor in tensors.items()})
    with pytest.raises(InputError, match="is not of test_resnet: it lacks conv1"):
        started(config(weights=odd), 4, 3)
    assert not caplog.records, "timm's own line of all names is not shown"


@pytest.mark.parametrize(
    ("name", "why"),
    [("test_vit", "is not of test_resnet: it lacks conv1"), ("resnet10t", "does not fit test_resnet: size mismatch")],
)
def test_weights_of_another_network_are_refused(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why) as refusal:
        started(config(weights=stored(tmp_path, trained(name))), 4, 3)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".PTH", ".tar"])
def test_a_pickle_is_refused_with_how_to_convert_it(ending: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"junk")
    for read in (start_weights, network_input):
        with pytest.raises(UsageError, match="is a pickle, which could run code") as refusal:
            read(config(weights=str(path)))
        assert "=torch.load(" in str(refusal.value)
        assert refusal.value.remedy.endswith(f"{path} weights.safetensors")
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 270 + len(str(tmp_path))


@pytest.mark.parametrize(("key", "ending"), [("", ""), ("state_dict", "x" * 80), ("model", "")])
def test_the_way_to_convert_a_pickle_works(
    key: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for a file elsewhere, a name that a shell would read as more than a name, and a framework's checkpoint."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tensors = trained(classes=4)
    name = f"../it's $(mine){ending}.pth"
    torch.save({key: tensors, "epoch": 3} if key else tensors, name)
    with pytest.raises(UsageError) as refusal:
        start_weights(config(weights=name))
    fail(refusal.value, debug=False)
    (line,) = capsys.readouterr().err.splitlines()
    python, *arguments = shlex.split(line.partition("convert it: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    weights = start_weights(config(weights="weights.safetensors"))
    assert weights is not None
    assert weights.tensors.keys() == tensors.keys()


@pytest.mark.parametrize("name", ["x" * 250 + ".pth", "V\u00f6gel.pth"])
def test_a_file_whose_name_has_no_room_in_an_error_is_the_users_to_fill_in(name: str) -> None:
    with pytest.raises(UsageError) as refusal:
        start_weights(config(weights=name))
    assert refusal.value.remedy.endswith("' FILE.pth weights.safetensors")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match="No such file"):
        start_weights(config(weights=str(path)))
    torch.save(trained(classes=4), path)
    for read in (start_weights, network_input):
        with pytest.raises(InputError):
            read(config(weights=str(path)))


# ---- the hub


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_found_before_a_training(tmp_path: Path, value: float) -> None:
    tensors = trained()
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name].flatten()[0] = value
    with pytest.raises(
        InputError, match=rf"holds numbers that are not finite \(NaN or infinite\), in {re.escape(name)}"
    ):
        start_weights(config(weights=stored(tmp_path, tensors)))


def test_timms_weights_come_from_the_hub_and_then_from_the_cache(hub_server, monkeypatch) -> None:
    tensors = trained()
    hub_server.commit("timm/test_resnet.r160_in1k", {"model.safetensors": save(tensors), "pytorch_model.bin": b"x"})
    weights = start_weights(config("test_resnet.r160_in1k", pretrained=True))
    again = start_weights(config(pretrained=True))
    assert weights is not None
    assert again is not None
    assert weights.digest == again.digest
    assert weights.origin == "timm/test_resnet.r160_in1k"
    assert torch.equal(weights.tensors["fc.weight"], tensors["fc.weight"])
    assert not any("pytorch_model" in line for line in hub_server.log)
    hub_server.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = start_weights(config(pretrained=True))
    assert offline is not None
    assert offline.digest == weights.digest
    assert hub_server.log == []


@pytest.mark.parametrize("files", [{}, {"pytorch_model.bin": b"x"}])
def test_weights_that_cannot_be_had_say_how_to_have_them(files: dict[str, bytes], hub_server) -> None:
    if files:
        hub_server.commit("timm/test_resnet.r160_in1k", files)
    with pytest.raises(EnvironmentFault, match="weights of test_resnet: cannot be downloaded") as refusal:
        start_weights(config(pretrained=True))
    assert refusal.value.remedy.endswith("and use --weights model.safetensors")
    assert "\n" not in str(refusal.value)


def test_what_is_no_file_of_weights_is_refused_and_nothing_else_is_loaded(
    tmp_path: Path, bundle_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.safetensors").write_text("no weights at all")
    save_file({}, tmp_path / "empty.safetensors")
    for path, said in (
        (bundle_file, f"is a policy's bundle, not a network's weights; use --bundle {bundle_file}"),
        (tmp_path, f"is a folder; name a file, such as --weights {tmp_path}/network.safetensors"),
        (tmp_path / "absent.safetensors", "No such file or directory; check the path"),
        (tmp_path / "text.safetensors", "is not a safetensors file"),
    ):
        for function in (start_weights, network_input):
            with pytest.raises(InputError, match=re.escape(said)):
                function(config(weights=str(path)))
    with pytest.raises(InputError, match="holds no tensors"):
        start_weights(config(weights=str(tmp_path / "empty.safetensors")))
    # timm would look for weights elsewhere.
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: pytest.fail("from the hub"))
    network = build_network("test_resnet", {}, 10, 3, 0, CPU)
    with pytest.raises(InputError, match="does not fit"):
        load_weights(network, StartWeights("empty", "", {}), "test_resnet", 10, 3)


def test_without_a_connection_one_error_says_so(monkeypatch: pytest.MonkeyPatch, caplog, capfd) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/x"
    )
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits for another try"))
    with pytest.raises(EnvironmentFault, match=r"cannot be downloaded \(.*refused\)"):
        start_weights(config(pretrained=True))
    assert (caplog.records, *capfd.readouterr()) == ([], "", "")


def test_a_network_without_pretrained_weights_says_so() -> None:
    with pytest.raises(UsageError, match=r"timm has no pretrained weights of wrn10_1; use --weights FILE"):
        start_weights(config("wrn10_1", pretrained=True))


def test_without_a_word_nothing_is_loaded() -> None:
    assert start_weights(config("resnet18.a1_in1k")) is None
    assert network_input(config("resnet18.a1_in1k")) is None
    assert normalisation_of(config("resnet18.a1_in1k"), 3) is None


# ---- the input


def test_the_input_is_timms(tmp_path: Path) -> None:
    assert network_input(config(pretrained=True)) == NetworkInput(160, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert network_input(config("resnet18.a1_in1k", pretrained=True)) == NetworkInput(224, "bicubic", **IMAGE_NET)
    path = stored(tmp_path, trained("wrn10_1", 4, 1))
    assert network_input(config("wrn10_1", weights=path)) is None, "nobody knows what it was trained on"
    assert network_input(config("resnet18", weights=path)) == NetworkInput(224, "bicubic", **IMAGE_NET)


def test_a_file_may_say_its_input(tmp_path: Path) -> None:
    about = {"mean": [0.25], "std": [0.5], "input_size": [1, 40, 40], "interpolation": "bilinear"}
    path = stored(tmp_path, trained("wrn10_1", 4, 1), {"config.json": json.dumps({"pretrained_cfg": about})})
    settings = config("wrn10_1", weights=path)
    assert network_input(settings) == NetworkInput(40, "bilinear", (0.25,), (0.5,))
    assert normalisation_of(settings, 1) == ((0.25,), (0.5,))
    assert normalisation_of(settings.with_changes(normalisation="data"), 1) is None


def test_the_normalisation_is_the_users_choice() -> None:
    own = config(pretrained=True)
    assert normalisation_of(own, 3) == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation_of(own.with_changes(normalisation="data"), 3) is None
    mean, std = normalisation_of(config("resnet18", pretrained=True), 1) or ((), ())
    assert mean == pytest.approx([0.449], abs=1e-9)
    assert std == pytest.approx([0.226], abs=1e-9)
    with pytest.raises(UsageError, match="no weights say which mean and deviation"):
        normalisation_of(config("wrn10_1", normalisation="network"), 3)


# ---- freezing


def test_the_classifier_alone_is_trained() -> None:
    network = build_network("test_resnet", {}, 4, 3, 0, CPU)
    freeze_body(network)
    assert [name for name, value in network.named_parameters() if value.requires_grad] == ["fc.weight", "fc.bias"]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    network.train()(torch.randn(8, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"fc.weight", "fc.bias"}, "running statistics stay too"


def test_a_network_without_a_classifier_cannot_be_frozen() -> None:
    with pytest.raises(UsageError, match="has no classifier that could be trained"):
        freeze_body(nn.Linear(2, 2))
