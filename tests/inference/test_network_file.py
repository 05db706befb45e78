"""Network files: what a run leaves describes itself, plain timm reads it, and hostile files are rejected."""

import io
import json
import os
import pickle
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save

from mapolicy import Limits, PolicyBundle, TrainConfig, search_policy, train_network
from mapolicy.bundle import canonical_json
from mapolicy.bundle.safetensors_reader import RawTensor
from mapolicy.errors import InputError, UsageError
from mapolicy.inference.build import built_network, check_network
from mapolicy.inference.network_file import network_bytes, parse_network_file, read_network_file
from mapolicy.inference.save import check_savable
from mapolicy.models.factory import build_network
from mapolicy.training.setup import TrainingSetup
from tests.helpers.bundle_factory import DELETE, Payload, container, framed, raw, zip_of
from tests.helpers.rejection import check_line

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def content(trained_run: Path) -> bytes:
    return (trained_run / "network.safetensors").read_bytes()


# ---- what a run leaves


def test_it_says_what_a_user_of_the_network_needs(
    trained_run: Path, trained: torch.nn.Module, bundle: PolicyBundle
) -> None:
    config = read_network_file(trained_run).config
    assert config.architecture == "test_resnet"
    assert config.label_names == tuple("0123456789")
    assert (config.channels, config.image_size) == (1, 8)
    assert config.mapolicy.bundle == bundle.digest
    assert config.mapolicy.stage == "train"
    assert config.mapolicy.dataset.name == "digits"
    assert config.mapolicy.images["resize"] == "crop"
    assert config.pretrained_cfg.mean == pytest.approx([0.305], abs=0.01)
    rebuilt = built_network(read_network_file(trained_run))
    assert not rebuilt.training
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(rebuilt(images), trained(images))


def test_equal_runs_leave_equal_bytes(bundle: PolicyBundle, make_train_config, tmp_path: Path, content: bytes) -> None:
    train_network(make_train_config(epochs=1), bundle, run_dir=tmp_path / "again")
    assert (tmp_path / "again" / "network.safetensors").read_bytes() == content


def test_a_search_leaves_its_proxy(make_search_config, tmp_path: Path) -> None:
    found = search_policy(make_search_config(epochs=1), run_dir=tmp_path / "run")
    file = read_network_file(tmp_path / "run" / "network.safetensors")
    assert file.config.mapolicy.bundle == found.digest
    assert file.config.mapolicy.stage == "search"
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(built_network(file)(images), found.build_extractor(CPU)(images))


def test_plain_timm_reads_it(trained_run: Path, trained: torch.nn.Module, tmp_path: Path) -> None:
    """timm and safetensors alone: by three lines, and as a folder like those of timm's models on the hub."""
    path = trained_run / "network.safetensors"
    config = json.loads(safe_open(path, "pt").metadata()["config.json"])
    network = timm.create_model(config["architecture"], pretrained_cfg=config["pretrained_cfg"], **config["model_args"])
    load_model(network, path)

    folder = tmp_path / "as-on-the-hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(path.read_bytes())
    from_folder = timm.create_model(f"local-dir:{folder}", pretrained=True)

    images = torch.randn(3, 1, 8, 8)
    for read in (network, from_folder):
        with torch.no_grad():
            torch.testing.assert_close(read.eval()(images), trained(images))
        data = timm.data.resolve_model_data_config(read)
        assert tuple(data["input_size"]) == (1, 8, 8)
        assert tuple(data["mean"]) == tuple(config["pretrained_cfg"]["mean"])
        assert data["crop_pct"] == 1.0
        assert data["interpolation"] == "bilinear"
    assert list(from_folder.pretrained_cfg["label_names"]) == list("0123456789")


@pytest.mark.parametrize("arch", ["coat_lite_tiny", "vit_tiny_patch16_224", "wrn10_1"])
def test_every_kind_of_network_comes_back(arch: str, make_train_config, tiny: Path, tmp_path: Path) -> None:
    """With shared tensors, with a size of its own, and one that timm does not have."""
    arguments = {} if arch == "wrn10_1" else {"img_size": 32}
    sizes = dict.fromkeys(("train_per_class", "validation_per_class", "test_per_class"), 2)
    config = make_train_config(
        policy="none", dataset=f"folder:{tiny / 'tiny'}", arch=arch, model_args=arguments, image_size=32, epochs=1,
        batch_size=4, **sizes,
    )  # fmt: skip
    network = train_network(config, run_dir=tmp_path / "run").network
    read = read_network_file(tmp_path / "run")
    rebuilt = built_network(read)
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in rebuilt.state_dict().items())
    described = json.loads(read.config.to_json())
    plain = timm.create_model(
        described["architecture"], pretrained_cfg=described["pretrained_cfg"], **described["model_args"]
    )
    load_model(plain, tmp_path / "run" / "network.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())


def test_what_cannot_be_described_is_refused_before_the_start(make_train_config) -> None:
    config = make_train_config(policy="none")
    setup = TrainingSetup.build(config, CPU)
    check_savable(config, setup.splits, setup.network)
    with pytest.raises(UsageError, match=r"built again from its name and arguments it has another"):
        check_savable(config.with_changes(arch="wrn10_1"), setup.splits, setup.network)
    setup.splits.classes = ("a", "b\x1b[2J")
    with pytest.raises(UsageError, match=r"label_names.*printable"):
        check_savable(config, setup.splits, setup.network)


def test_parts_of_one_storage_are_stored_each(content: bytes) -> None:
    file = parse_network_file(content, "f")
    assert network_bytes(file.config, file.tensors) == content


# ---- what is rejected


def changed(content: bytes, changes: dict[str, object]) -> bytes:
    """The file with other values in its description, by dotted path; canonical again."""
    file = parse_network_file(content, "f")
    config = json.loads(file.config.to_json())
    for path, value in changes.items():
        *folders, last = path.split(".")
        part = config
        for folder in folders:
            part = part[folder]
        if value is DELETE:
            del part[last]
        else:
            part[last] = value
    return container({"config.json": canonical_json.canonical(config)}, file.tensors)


def with_text(content: bytes, edit: Callable[[str], str]) -> bytes:
    file = parse_network_file(content, "f")
    return container({"config.json": edit(file.config.to_json())}, file.tensors)


def with_tensors(content: bytes, **replaced: RawTensor | object) -> bytes:
    file = parse_network_file(content, "f")
    tensors = dict(file.tensors)
    for name, tensor in replaced.items():
        name = name.replace("__", ".")
        if tensor is DELETE:
            del tensors[name]
        else:
            tensors[name] = tensor
    return container({"config.json": file.config.to_json()}, tensors)


BIAS = "fc__bias"

CASES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda c: b"", "too few for a network file"),
    "seven bytes": (lambda c: c[:7], "too few"),
    "header length 2^64-1": (lambda c: b"\xff" * 8 + c[8:], "says its header has"),
    "header past the end": (lambda c: struct.pack("<Q", 2**16) + c[8:500], "ends inside its header"),
    "cut by a byte": (lambda c: c[:-1], "truncated"),
    "cut by half": (lambda c: c[: len(c) // 2], "truncated|ends inside"),
    "a trailing byte": (lambda c: c + b"\0", "after its last tensor"),
    "zip polyglot": (lambda c: c + zip_of(b""), "after its last tensor|zip archive"),
    "a pickle": (lambda c: pickle.dumps({"a": 1}), "looks like a pickle"),
    "an array": (lambda c: framed(b"[1]"), "does not begin with"),
    "plain safetensors": (lambda c: save({"weight": torch.zeros(2)}), "has no metadata 'config.json'; an older map"),
    "another key": (
        lambda c: container({"config.json": "{}", "format": "pt"}, parse_network_file(c, "f").tensors),
        "has metadata 'format'",
    ),
    "not JSON": (lambda c: with_text(c, lambda t: t[:-1]), "is not JSON"),
    "a number": (lambda c: with_text(c, lambda t: "7"), "format"),
    "duplicate key": (lambda c: with_text(c, lambda t: t[:-1] + ',"num_classes":10}'), "twice"),
    "deep": (lambda c: with_text(c, lambda t: "[" * 30 + "]" * 30), "nested deeper"),
    "other spelling": (lambda c: with_text(c, lambda t: t.replace(":", ": ", 1)), "not spelled"),
    "newer format": (lambda c: changed(c, {"mapolicy.format": 2}), "format 2; this mapolicy reads format 1"),
    "no format": (lambda c: changed(c, {"mapolicy.format": DELETE}), "format None"),
    "unknown key": (lambda c: changed(c, {"x": 1}), "x is not a field"),
    "missing key": (lambda c: changed(c, {"label_names": DELETE}), "label_names is missing"),
    "other number of classes": (lambda c: changed(c, {"num_classes": 9}), "num_classes"),
    "classes twice": (lambda c: changed(c, {"label_names": ["0"] * 10}), "each name once"),
    "class with an escape sequence": (
        lambda c: changed(c, {"label_names": [*"012345678", "\x1b[2J"]}),
        "printable text",
    ),
    "architecture on the hub": (lambda c: changed(c, {"architecture": "hf-hub:a/b"}), "architecture"),
    "architecture in a folder": (lambda c: changed(c, {"architecture": "local-dir:x"}), "architecture"),
    "architecture with a line break": (lambda c: changed(c, {"architecture": "test_resnet\n"}), "architecture"),
    "unknown architecture": (lambda c: changed(c, {"architecture": "nope"}), "not in timm's registry"),
    "argument that is not allowed": (
        lambda c: changed(c, {"model_args.act_layer": "relu"}),
        "'act_layer'.*--trust-arguments",
    ),
    "argument out of range": (lambda c: changed(c, {"model_args.depth": 10**9}), "depth"),
    "weights from the network": (lambda c: changed(c, {"model_args.pretrained": True}), "pretrained"),
    "too many parameters": (
        lambda c: changed(c, {"architecture": "vit_giant_patch14_224"}),
        r"more than the 500000000 a.*--limit parameters=",
    ),
    "another architecture": (lambda c: changed(c, {"architecture": "wrn10_1"}), "tensor"),
    "size that is not allowed": (
        lambda c: changed(c, {"pretrained_cfg.input_size": [1, 4096, 4096], "mapolicy.images.image_size": 4096}),
        "4096 x 4096 pixels.*--limit pixels",
    ),
    "not square": (lambda c: changed(c, {"pretrained_cfg.input_size": [1, 8, 9]}), "expected a square"),
    "two channels": (lambda c: changed(c, {"pretrained_cfg.input_size": [2, 8, 8]}), "1 or 3"),
    "deviation 0": (lambda c: changed(c, {"pretrained_cfg.std": [0.0]}), "std"),
    "three means": (lambda c: changed(c, {"pretrained_cfg.mean": [0.5] * 3}), "mean has 3 numbers"),
    "crop of nothing": (lambda c: changed(c, {"pretrained_cfg.crop_pct": 0.0}), "crop_pct"),
    "two ways to make an image square": (
        lambda c: changed(c, {"mapolicy.images.resize": "pad"}),
        "images.resize is 'pad', pretrained_cfg says 'crop'",
    ),
    "digest of nothing": (lambda c: changed(c, {"mapolicy.bundle": "../x"}), "bundle"),
    "tensor missing": (lambda c: with_tensors(c, **{BIAS: DELETE}), "'fc.bias' of test_resnet is missing"),
    "tensor too many": (lambda c: with_tensors(c, other=raw([1.0])), "'other' is not one of"),
    "tensor of another shape": (lambda c: with_tensors(c, **{BIAS: raw([1.0] * 9)}), "has shape"),
    "tensor of whole numbers": (lambda c: with_tensors(c, **{BIAS: raw([1] * 10, "I64")}), "dtype I64"),
    "NaN": (lambda c: with_tensors(c, **{BIAS: raw([np.nan] * 10)}), "not finite"),
    "infinite": (lambda c: with_tensors(c, **{BIAS: raw([np.inf] * 10)}), "not finite"),
    "finite, but its logits are not": (
        lambda c: with_tensors(c, fc__weight=raw(np.full(fc_shape(c), 3e38)), **{BIAS: raw([3e38] * 10)}),
        "logits that are not finite",
    ),
    "name with ../": (lambda c: with_tensors(c, **{"../x": raw([1.0])}), "not a name that network files have"),
}  # fmt: skip


def fc_shape(content: bytes) -> tuple[int, ...]:
    return parse_network_file(content, "f").tensors["fc.weight"].shape


@pytest.mark.parametrize("case", CASES)
def test_hostile_files_are_rejected(case: str, content: bytes, tmp_path: Path) -> None:
    make, expected = CASES[case]
    path = tmp_path / "network.safetensors"
    path.write_bytes(make(content))
    began = time.monotonic()
    with pytest.raises(InputError, match=expected) as problem:
        built_network(read_network_file(path))
    assert time.monotonic() - began < 20
    check_line(str(problem.value))


def test_damaged_files_are_rejected_in_one_line_or_are_whole(content: bytes) -> None:
    draw = random.Random(0)
    header = 8 + struct.unpack_from("<Q", content)[0]
    rejected = 0
    for number in range(300):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 2, 8))):
            damaged[draw.randrange(header if number % 3 else len(content))] = draw.randrange(256)
        if number % 5 == 0:
            damaged = damaged[: draw.randrange(len(content))]
        try:
            check_network(parse_network_file(bytes(damaged), "f"))
        except InputError as problem:
            check_line(str(problem))
            rejected += 1
    assert rejected > 150


def test_a_payload_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    (tmp_path / "network.safetensors").write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(InputError, match="looks like a pickle"):
        read_network_file(tmp_path)
    buffer = io.BytesIO()
    torch.save({"a": Payload(target)}, buffer)
    (tmp_path / "network.safetensors").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"looks like a zip archive \(a \.pt"):
        read_network_file(tmp_path)
    assert not target.exists()


def test_neither_kind_is_taken_for_the_other(bundle_file: Path, trained_run: Path) -> None:
    with pytest.raises(InputError, match="is a policy bundle, expected a network file; name a network file"):
        read_network_file(bundle_file)
    with pytest.raises(InputError, match="is a network file, expected a policy bundle"):
        PolicyBundle.load(trained_run / "network.safetensors")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no network\.safetensors: .*name the folder of a finished run"):
        read_network_file(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_network_file(tmp_path / "missing")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        read_network_file(tmp_path / "fifo")


def test_limits_can_be_raised(content: bytes) -> None:
    small = Limits(parameters=100)
    with pytest.raises(
        InputError, match=r"more than the 100 allowed; if you trust its sender, add --limit parameters="
    ):
        built_network(parse_network_file(content, "f", small))
    with pytest.raises(InputError, match="header"):
        parse_network_file(content, "f", Limits(header_bytes=64))


def test_arguments_can_be_trusted(
    content: bytes, make_train_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_train_config(policy="none", epochs=1, model_args={"global_pool": "max"})
    network = train_network(config, run_dir=tmp_path / "run").network
    file = read_network_file(tmp_path / "run")
    with pytest.raises(InputError, match="global_pool"):
        built_network(file)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(built_network(file, trust_arguments=True)(images), network(images))
    reserved = parse_network_file(changed(content, {"model_args.pretrained": True}), "f")
    with pytest.raises(InputError, match="pretrained"):
        built_network(reserved, trust_arguments=True)


def test_reading_leaves_the_global_generator_alone(content: bytes) -> None:
    before = torch.random.get_rng_state()
    built_network(parse_network_file(content, "f"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert build_network("test_resnet", {}, 10, 1, 0, CPU).training
