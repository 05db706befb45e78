"""PolicyBundle: round trip, what it builds, and architectures that are refused before they are built."""

import os
import stat
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from mapolicy.bundle.manifest import EXTRACTOR_CALL
from mapolicy.config import RunConfig
from mapolicy.errors import EnvironmentFault, InputError
from mapolicy.policy import policy_bundle as bundle_module
from mapolicy.policy.network import PolicyNetwork
from mapolicy.policy.policy_bundle import PolicyBundle
from tests.helpers.bundle_factory import CLASSES, DELETE, HELD_OUT, draft, forge, raw, small_tensors

ARCH = "test_resnet"


def make_proxy(arch: str = ARCH) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(arch, pretrained=False, num_classes=CLASSES, in_chans=1)


def make_bundle(arch: str = ARCH, dtype: str = "float32", alpha: str = "scalar", sees: str = "both") -> PolicyBundle:
    proxy = make_proxy(arch)
    policy = PolicyNetwork(proxy.head_hidden_size, policy_input=sees)
    values = torch.rand(14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layers = len(list(proxy.parameters()))
    part = {
        "arch": arch,
        "model_args": {},
        "feature_width": proxy.head_hidden_size,
        "dtype": dtype,
        "call": EXTRACTOR_CALL,
    }
    settings = {"proxy": arch, "alpha": alpha}
    return PolicyBundle.assemble(
        draft(extractor=part, alpha=alpha, policy={"hidden": 100, "input": sees}, search={"settings": settings}),
        policy=policy.state_dict(),
        alpha=torch.tensor(0.01) if alpha == "scalar" else torch.full((layers,), 0.01),
        probabilities=values / values.sum(),
        means=values,
        extractor=proxy.state_dict(),
        meta_validation=torch.tensor(HELD_OUT).flip(0),
    )


@pytest.fixture(scope="module")
def bundle() -> PolicyBundle:
    return make_bundle()


@pytest.fixture(scope="module")
def valid(bundle: PolicyBundle) -> bytes:
    return bundle.to_bytes()


@pytest.mark.parametrize("sees", ["both", "features", "embedding"])
@pytest.mark.parametrize("alpha", ["scalar", "per-layer"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trip(dtype: str, alpha: str, sees: str, tmp_path: Path) -> None:
    bundle = make_bundle(dtype=dtype, alpha=alpha, sees=sees)
    path = tmp_path / "a.safetensors"
    bundle.save(path)
    loaded = PolicyBundle.load(path, expect_digest=bundle.digest)
    assert loaded.manifest == bundle.manifest
    assert loaded.tensors.keys() == bundle.tensors.keys()
    for name, tensor in bundle.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    loaded.save(str(tmp_path / "b.safetensors"))
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    theirs = safetensors.torch.load_file(path)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in bundle.tensors.items())


def test_equal_searches_give_equal_bytes(valid: bytes) -> None:
    assert make_bundle().to_bytes() == valid
    assert str(Path.cwd()).encode() not in valid


def test_what_it_builds_is_what_was_stored(bundle: PolicyBundle, valid: bytes) -> None:
    loaded = PolicyBundle.from_bytes(valid)
    images = torch.rand(3, 1, 32, 32)
    proxy = make_proxy().eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    extractor, policy = loaded.build_extractor(torch.device("cpu")), loaded.build_policy()
    assert torch.equal(torch.get_rng_state(), before), "building draws nothing from the global generator"
    assert not extractor.training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    # The extractor is channels-last and this proxy is not: sums are rounded in another order.
    torch.testing.assert_close(extractor(images), proxy(images), rtol=1e-6, atol=1e-7)
    state = policy.state_dict()
    assert all(torch.equal(state[name], bundle.tensors[f"policy.{name}"]) for name in state)
    assert any(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_how_it_is_stored_not_how_it_computes(dtype: str) -> None:
    bundle = make_bundle(dtype=dtype)
    weights = [tensor for name, tensor in bundle.tensors.items() if name.startswith("extractor.")]
    assert {tensor.dtype for tensor in weights} == {getattr(torch, dtype), torch.int64}
    extractor = bundle.build_extractor(torch.device("cpu"))
    assert {parameter.dtype for parameter in extractor.parameters()} == {torch.float32}
    half = bundle.build_extractor(torch.device("cpu"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert len(bundle.to_bytes()) < len(make_bundle().to_bytes())


def test_accessors_are_copies(valid: bytes) -> None:
    bundle = PolicyBundle.from_bytes(valid)
    for name in ("probabilities", "means", "alpha", "meta_validation"):
        getattr(bundle, name).zero_()
    with torch.no_grad():
        for network in (bundle.build_policy(), bundle.build_extractor(torch.device("cpu"))):
            for parameter in network.parameters():
                parameter.zero_()
    assert bundle.to_bytes() == valid
    assert bundle.meta_validation.tolist() == list(HELD_OUT), "sorted, whatever order the search had"
    assert bundle.meta_validation.dtype == torch.int64
    assert bundle.alpha.shape == ()


def test_data_settings_are_settings_of_a_run(bundle: PolicyBundle) -> None:
    settings = bundle.data_settings()
    assert set(settings) <= set(RunConfig.__dataclass_fields__)
    assert settings["dataset"] == "digits"
    assert settings["operation_space"] == "metaaugment-v1"
    assert settings["train_per_class"] == 6.0


def test_our_own_networks_are_known() -> None:
    bundle = make_bundle("wrn10_1")
    assert PolicyBundle.from_bytes(bundle.to_bytes()).build_extractor(torch.device("cpu")).num_features == 64


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask(bundle: PolicyBundle, mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        bundle.save(tmp_path / "bundle")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == mode


def test_save_refuses_a_link(bundle: PolicyBundle, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    with pytest.raises(EnvironmentFault):
        bundle.save(link)
    assert target.read_bytes() == b"precious"
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_half_precision_that_overflows_is_not_written() -> None:
    bundle = make_bundle(dtype="float16")
    parts = {name: tensor.float() for name, tensor in bundle.tensors_under("extractor.").items()}
    next(tensor for name, tensor in parts.items() if name.endswith("weight")).fill_(1e6)
    with pytest.raises(InputError, match="NaN or infinite"):
        PolicyBundle.assemble(
            bundle.manifest.draft(),
            policy=bundle.tensors_under("policy."),
            alpha=bundle.alpha,
            probabilities=bundle.probabilities,
            means=bundle.means,
            extractor=parts,
            meta_validation=bundle.meta_validation,
        )


# id: (changes of the manifest, tensors replaced, what the error must say)
HOSTILE = {
    "A18 extractor tensor missing": ({}, {"extractor.FIRST": DELETE}, "of test_resnet is missing"),
    "A18 extractor tensor extra": ({}, {"extractor.zzz.weight": raw([1.0])}, "'extractor.zzz.weight' is not one of"),
    "A18 no extractor": ({}, {"extractor.ALL": DELETE}, "of test_resnet is missing"),
    "A19 extractor of another shape": ({}, {"extractor.FIRST": raw(np.zeros((2, 2)))}, "shape (2, 2), expected ("),
    "A19 classes of another number": (
        {
            "dataset.classes": ["a", "b"],
            "dataset.split.train_per_class": 0.0,
            "dataset.split.validation_per_class": 2.0,
        },
        {},
        "expected (2",
    ),
    "A19 channels of another number": (
        {"input.channels": 3, "input.mean": [0.5] * 3, "input.std": [0.5] * 3},
        {},
        "expected (",
    ),
    "A19 another arch": ({"extractor.arch": "test_vit"}, {}, "test_vit"),
    "A19 alpha of another length": ({"alpha": "per-layer"}, {"alpha": raw([0.1] * 3)}, "alpha has 3 numbers, expected"),
    "A20 a count as floats": ({}, {"extractor.COUNT": raw(3.0)}, "has dtype F32"),
    "A20 weights as counts": ({}, {"extractor.FIRST": "I64"}, "has dtype I64"),
    "A27 arch unknown": (
        {"extractor.arch": "resnet_of_theirs"},
        {},
        ": extractor.arch 'resnet_of_theirs' is not in timm's registry",
    ),
    "A27 arch with a scheme": ({"extractor.arch": "hf-hub:timm/resnet18.a1_in1k"}, {}, "expected a timm name"),
    "A27 arch with a scheme in capitals": ({"extractor.arch": "HF_HUB:x"}, {}, "expected a timm name"),
    "A27 arch a local folder": ({"extractor.arch": "local-dir:/etc"}, {}, "expected a timm name"),
    "A27 arch a path": ({"extractor.arch": "/etc/passwd"}, {}, "expected a timm name"),
    "A27 arch with a line break": ({"extractor.arch": "test_resnet\nx"}, {}, "expected a timm name"),
    "A27 arch with a tag": ({"extractor.arch": "resnet18.a1_in1k"}, {}, "expected a timm name"),
    "A27 arch a python name": ({"extractor.arch": "__import__"}, {}, "expected a timm name"),
    "A27 argument not taken": (
        {"extractor.model_args": {"img_size": 32}},
        {},
        "extractor.arch test_resnet cannot be built",
    ),
    "A27 argument pretrained": ({"extractor.model_args": {"pretrained": True}}, {}, "argument 'pretrained'"),
    "A27 argument config": ({"extractor.model_args": {"pretrained_cfg": {"url": "x"}}}, {}, "'pretrained_cfg'"),
    "A27 image smaller than its patches": (
        {"extractor.arch": "test_vit", "extractor.model_args": {"img_size": 4, "patch_size": 256}},
        {},
        "test_vit",
    ),
    "A29 a billion parameters": (
        {"extractor.arch": "vit_giant_patch14_224"},
        {},
        "; if you trust its sender, add --limit parameters=1010656132 (in Python: Limits)",
    ),
    "A29 a large arch": ({"extractor.arch": "vit_large_patch16_224"}, {}, "vit_large_patch16_224 has 1024"),
    "A29 pixels without end": (
        {"extractor.arch": "vit_base_patch16_224", "extractor.model_args": {"img_size": 4096, "patch_size": 1}},
        {},
        "add --limit parameters=12969964036 ",
    ),
    "A29 buffers without end, which need not be in the file": (
        {
            "extractor.arch": "swin_tiny_patch4_window7_224",
            "extractor.model_args": {"img_size": 1024, "window_size": 128},
        },
        {},
        "add --limit parameters=2280262382 ",
    ),
}

_opened: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    # An open of a number is the file object around the bundle's own descriptor.
    named = event == "open" and not isinstance(arguments[0], int)
    if _watching and (named or event.startswith(("socket.", "subprocess.", "os.system", "urllib."))):
        _opened.append(f"{event} {arguments[0]}")


sys.addaudithook(_watch)


def hostile_file(case: str, bundle: PolicyBundle) -> bytes:
    """The bundle as the case has it, with a right digest."""
    changes, replaced, _ = HOSTILE[case]
    tensors = {name: bundle_module.to_raw(tensor) for name, tensor in bundle.tensors.items()}
    extractor = [name for name in tensors if name.startswith("extractor.")]
    for name, tensor in replaced.items():
        aliases = {
            "extractor.FIRST": [name for name in extractor if name.endswith("weight")][:1],
            "extractor.ALL": extractor,
            "extractor.COUNT": [name for name in extractor if name.endswith("num_batches_tracked")][:1],
        }
        for actual in aliases.get(name, [name]):
            if tensor is DELETE:
                del tensors[actual]
            elif tensor == "I64":
                tensors[actual] = raw(np.zeros(tensors[actual].shape), "I64")
            else:
                tensors[actual] = tensor
    settings = (
        {} if any(key.startswith(("extractor.", "alpha")) for key in changes) else bundle.manifest.search.settings
    )
    return forge({**changes, "search.settings": settings}, tensors, base=bundle.manifest.draft())


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_architectures_open_nothing(case: str, bundle: PolicyBundle, tmp_path: Path) -> None:
    global _watching
    _, _, says = HOSTILE[case]
    path = tmp_path / "x"
    path.write_bytes(hostile_file(case, bundle))
    _opened.clear()
    start = time.process_time()
    _watching = True
    try:
        with pytest.raises(InputError) as problem:
            PolicyBundle.load(path)
    finally:
        _watching = False
    seconds = time.process_time() - start
    line = str(problem.value)
    assert says in line
    assert line.isascii()
    assert line.isprintable()
    assert len(f"mapolicy: error: {line}") <= 240
    assert _opened == [f"open {path}"]
    assert seconds < 20, "refused before anything large is built"


def test_other_peoples_tensors_are_not_an_extractor() -> None:
    """A bundle whose bytes are in order, but whose extractor is of no arch."""
    with pytest.raises(InputError, match=r"extractor\.feature_width|test_resnet"):
        PolicyBundle.from_bytes(forge(tensors=small_tensors()))


def test_other_digest_is_refused(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(valid)
    with pytest.raises(InputError, match="it is another bundle than the one asked for"):
        PolicyBundle.load(path, expect_digest="0" * 64)


def test_a_bundle_does_not_decide_to_reach_for_the_network(bundle: PolicyBundle) -> None:
    data = bundle.manifest.dataset.model_copy(update={"name": "hfds/somebody/images"})
    remote = PolicyBundle(bundle.manifest.model_copy(update={"dataset": data}), bundle.tensors)
    assert remote.data_settings()["dataset"] == "hfds/somebody/images"
    assert [each.data_settings()["download"] for each in (bundle, remote)] == [False, False]


def test_loading_takes_no_more_memory_than_twice_the_file(tmp_path: Path) -> None:
    """Peak of Python's own allocations, and the copies that torch is given."""
    content = make_bundle("wrn16_2").to_bytes()
    path = tmp_path / "bundle"
    path.write_bytes(content)
    PolicyBundle.load(path)
    tracemalloc.start()
    try:
        PolicyBundle.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(content) < peak <= 2 * len(content) + 2**20
