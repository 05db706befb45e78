"""Names are names in timm's registry and nothing else; weights come from the seed alone."""

import builtins
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_model, save_file
from torch import nn

from mapolicy.errors import UsageError
from mapolicy.models.factory import build_network, check_arch, known_archs, unique_tensors

CPU = torch.device("cpu")


def build(name: str = "wrn10_1", classes: int = 4, channels: int = 1, seed: int = 0, **arguments: object) -> nn.Module:
    return build_network(name, arguments, classes, channels, seed, CPU)


@pytest.mark.parametrize(
    "name",
    [
        *("wrn10_1", "wrn16_2", "wrn28_10", "wrn40_2", "wrn94_4"),
        *("shakeshake26_2x32d", "shakeshake26_2x96d", "shakeshake26_2x112d", "pyramidnet110_a48", "pyramidnet272_a200"),
        *("resnet18", "resnet18.a1_in1k", "vit_tiny_patch16_224", "convnext_atto"),
    ],
)
def test_names_in_the_registry(name: str) -> None:
    check_arch(name)


def test_all_of_timm_is_accepted() -> None:
    names = timm.list_models()
    assert len(names) > 1000
    for name in names:
        check_arch(name)


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18",
        "HF-HUB:timm/resnet18",
        "hf_hub:timm/resnet18",
        "local-dir:/tmp",
        "timm/resnet18",
        "resnet18.nope",
        "resnet18.a1_in1k.pth",
        "resnet18.",
        "./resnet18",
        "",
        " resnet18",
        "resnet18\n",
        "resnet18\x00",
        "RESNET18",
        "resnet\u00b918",
        "r" * 10_000,
    ],
)
def test_other_names_are_refused_and_nothing_is_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("something was opened")

    timm.list_models()  # reads nothing, but may import
    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr("socket.socket.connect", opened)
    for refuse in (check_arch, build):
        with pytest.raises(UsageError) as refusal:
            refuse(name)
        assert refusal.value.exit_code == 2
        assert refusal.value.why == f"{name[:80]!r} is not in timm's registry"
        assert "\n" not in str(refusal.value)


def test_unknown_name_comes_with_three_suggestions() -> None:
    with pytest.raises(UsageError) as refusal:
        check_arch("wrn28_10x")
    intro, names = refusal.value.remedy.split(" are ")
    assert intro == "the closest"
    suggestions = names.split(", ")
    assert len(suggestions) == 3
    assert suggestions[0] == "wrn28_10"
    for name in suggestions:
        check_arch(name)


def test_network_is_the_one_asked_for() -> None:
    network = build(classes=7, channels=2, drop_rate=0.25)
    assert network(torch.zeros(3, 2, 8, 8)).shape == (3, 7)
    assert {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)} == {0.25}


def test_other_devices_generators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle is also loaded in the middle of somebody's run on CUDA."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    build("wrn10_1")
    assert seeded == []
    torch.manual_seed(0)
    assert seeded == [0], "that is how torch seeds them"


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build(seed=3).state_dict()
    torch.manual_seed(2)
    again, other = build(seed=3).state_dict(), build(seed=4).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if "conv" in name or name == "fc.weight"]
    assert len(drawn) == 8  # the first, two a block, the classifier
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


BAD_ARGUMENTS = [
    ("wrn10_1", {"bogus": 3}),
    ("wrn10_1", {"drop_rate": 2}),
    ("wrn10_1", {"num_classes": 3}),
    ("wrn10_1", {"pretrained": True}),
    ("resnet10t", {"layers": 3}),
    ("vit_tiny_patch16_224", {"img_size": "a"}),
    ("vit_tiny_patch16_224", {"embed_dim": -192, "depth": 1}),
    ("vit_tiny_patch16_224", {"num_heads": 0, "depth": 1}),
    ("resnet10t", {"act_layer": "nope"}),
    ("resnet10t", {"block": "nope"}),
    ("resnet10t", {"checkpoint_path": "nope"}),
]


@pytest.mark.parametrize(
    ("name", "arguments"), [pytest.param(*case, id=f"{case[0]}-{'-'.join(case[1])}") for case in BAD_ARGUMENTS]
)
def test_arguments_that_the_constructor_does_not_take(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(
        UsageError, match=f"^network {name}: cannot be built: .+; (check --model-arg|use --(pretrained|weights FILE))$"
    ) as refusal:
        build(name, **arguments)
    assert "\n" not in str(refusal.value)


def test_no_argument_opens_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"junk")
    opened = []

    def load(*arguments: object, **_: object) -> None:
        opened.append(arguments[0])
        raise ValueError

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UsageError):
        build("resnet10t", checkpoint_path=str(path))
    assert opened == []


@pytest.mark.parametrize("name", ["wrn16_2", "test_vit"])
def test_weights_lie_channels_last(name: str) -> None:
    kernels = [parameter for parameter in build(name, channels=3).parameters() if parameter.ndim == 4]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_a_shared_tensor_is_stored_once(tmp_path: Path) -> None:
    network = build("coat_lite_tiny", classes=2, channels=3)
    names, stored = network.state_dict(), unique_tensors(network)
    assert 0 < len(stored) < len(names)
    # It refuses tensors that share memory.
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, tmp_path / "network.safetensors")
    other = build("coat_lite_tiny", classes=2, channels=3, seed=1)
    load_model(other, tmp_path / "network.safetensors")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in names.items())


def test_every_network_is_known_by_name() -> None:
    archs = {arch.name: arch for arch in known_archs()}
    assert set(archs) == {*timm.list_models(), "pyramidnet"}
    assert list(archs) == sorted(archs)
    assert archs["pyramidnet"].description.startswith("is pyramidnet272_a200; ")
    assert not archs["resnet18"].fixed_size
    assert "others by img_size" in archs["vit_tiny_patch16_224"].description
    assert "wrn46_3" not in archs
    assert "wrn46_3" in {arch.name for arch in known_archs("wrn46_3")}


def test_wide_residual_networks_by_name() -> None:
    """Of any depth and width that there is, in letters of either case; otherwise it says which there are."""
    assert "wrn34_7" in {arch.name for arch in known_archs("WRN34_7")}
    with pytest.raises(UsageError, match=r"'wrn11_2' is not in timm's registry; .*; the depth .* is 6n \+ 4$"):
        check_arch("wrn11_2")
