"""The bundles in tests/data/ load for ever and compute what they computed; a reader made from the document agrees."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from mapolicy import PolicyBundle
from mapolicy.bundle.dataset_level import DatasetPolicy
from mapolicy.bundle.manifest_base import FORMATS
from mapolicy.policy.frozen import FrozenExtractor, FrozenWeights
from mapolicy.policy.levels import StagedLevels
from tests.helpers import plain_reader
from tests.helpers.make_bundles import BUNDLES, DATA, DATASET_LEVEL, EXPECTED, SLIM, fixed_batch, raw_outputs

CPU = torch.device("cpu")
EXPECTATIONS = json.loads(EXPECTED.read_text(encoding="utf-8"))
KEPT = {name: facts for name, facts in EXPECTATIONS.items() if "raw_outputs" in facts}
LISTED = {name: facts for name, facts in EXPECTATIONS.items() if name not in KEPT}


def path_of(name: str) -> Path:
    return DATA / f"{name}.safetensors"


def test_every_kept_file_is_tested() -> None:
    assert sorted(path.stem for path in DATA.glob("*.safetensors")) == sorted(EXPECTATIONS)
    assert {*BUNDLES, *SLIM} <= set(KEPT)
    assert DATASET_LEVEL in LISTED
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 320 * 2**10


@pytest.mark.parametrize("name", KEPT)
def test_kept_files_load_and_compute_what_they_did(name: str) -> None:
    bundle = PolicyBundle.load(path_of(name), expect_digest=KEPT[name]["digest"])
    assert bundle.to_bytes() == path_of(name).read_bytes()
    torch.testing.assert_close(raw_outputs(bundle), torch.tensor(KEPT[name]["raw_outputs"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LISTED)
def test_kept_lists_load_and_say_what_they_did(name: str) -> None:
    policy = DatasetPolicy.load(path_of(name), expect_digest=LISTED[name]["digest"])
    assert policy.to_bytes() == path_of(name).read_bytes()
    assert [[step.model_dump() for step in steps] for steps in policy.manifest.sub_policies] == LISTED[name][
        "sub_policies"
    ]
    assert list(policy.manifest.lost) == LISTED[name]["lost"]


def test_kept_files_are_of_every_kind() -> None:
    bundles = [PolicyBundle.load(str(path_of(name))) for name in KEPT]
    assert {bundle.manifest.format for bundle in bundles} == {*FORMATS}
    assert {(bundle.manifest.levels is None, bundle.manifest.verification is None) for bundle in bundles} == {
        (True, True),
        (False, False),
    }
    assert {bundle.manifest.alpha for bundle in bundles} == {"scalar", "per-layer"}
    assert {bundle.manifest.extractor.dtype for bundle in bundles} == {"float32", "float16", "bfloat16"}
    assert {bundle.has_classifier for bundle in bundles} == {True, False}
    assert any(bundle.manifest.extractor.model_args for bundle in bundles)


@pytest.mark.parametrize("name", KEPT)
def test_a_reader_made_from_the_document_agrees(name: str) -> None:
    """Container, digest, feature, embedding and weights as the document has them, beside the library's."""
    manifest, tensors = plain_reader.read(path_of(name))
    bundle = PolicyBundle.load(path_of(name))
    assert manifest["digest"] == bundle.digest
    assert json.loads(bundle.manifest.to_json()) == manifest
    assert tensors.keys() == bundle.tensors.keys()
    for key, tensor in bundle.tensors.items():
        numbers = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # numpy has no such type
        np.testing.assert_array_equal(tensors[key], numbers.numpy())

    images, transformation = fixed_batch()
    part, contract = manifest["extractor"], manifest["input"]
    classes = len(manifest["dataset"]["classes"])
    network = timm.create_model(part["arch"], num_classes=classes, in_chans=contract["channels"], **part["model_args"])
    state = {key.removeprefix("extractor."): tensors[key] for key in tensors if key.startswith("extractor.")}
    parameters = {key: torch.tensor(numbers) for key, numbers in state.items()}
    missing, unexpected = network.load_state_dict(parameters, strict=False)
    assert unexpected == []
    assert set(missing) in (set(), {"head.weight", "head.bias"}), "all, or all but the classifier"
    assert part["call"] == "forward_head(forward_features(images), pre_logits=True)"
    for side in (contract["size"], 13):
        shown = F.interpolate(images.float(), size=(side, side), mode="nearest").to(torch.uint8)
        pixels = shown.float()
        if side != contract["size"]:
            pixels = F.interpolate(pixels, size=(contract["size"],) * 2, mode="bilinear", antialias=True)
        mean, std = (np.array(contract[key], dtype=np.float32)[:, None, None] for key in ("mean", "std"))
        with torch.no_grad():
            inputs = torch.from_numpy((pixels.numpy() / 255 - mean) / std)
            features = network.eval().forward_head(network.forward_features(inputs), pre_logits=True).numpy()
        drawn = zip(
            transformation.first.tolist(),
            transformation.magnitude1.abs().tolist(),
            transformation.second.tolist(),
            transformation.magnitude2.abs().tolist(),
            strict=True,
        )
        embeddings = np.stack([plain_reader.embedding(manifest, *each) for each in drawn])
        np.testing.assert_array_equal(embeddings, transformation.embed().numpy())
        raw, weights = plain_reader.weights(tensors, features, embeddings)
        ours = FrozenWeights(FrozenExtractor(bundle, CPU), bundle.build_policy()).of(shown, transformation)
        np.testing.assert_allclose(weights, ours.numpy(), rtol=1e-4)
        if side == contract["size"]:
            np.testing.assert_allclose(raw, KEPT[name]["raw_outputs"], rtol=1e-4, atol=1e-5)


def test_a_reader_made_from_the_document_draws_the_same_levels() -> None:
    manifest, tensors = plain_reader.read(path_of("format-2-levels"))
    drawn = plain_reader.level_probabilities(manifest, tensors)
    bundle = PolicyBundle.load(path_of("format-2-levels"))
    sampler = bundle.sampler()
    assert isinstance(sampler, StagedLevels)
    np.testing.assert_allclose(drawn, sampler.cells().numpy(), rtol=1e-6)
    np.testing.assert_allclose(np.outer(drawn.sum(1), drawn.sum(1)), bundle.probabilities.numpy(), rtol=1e-5)
    # The tables follow each other at equal shares of a run.
    table = tensors["sampler.log_levels"]
    for stage, one in enumerate(table):
        cells = np.exp(manifest["levels"]["strength"] * one.astype(np.float64))
        for share in (0.01, 0.99):
            found = sampler.cells((stage + share) / len(table)).numpy()
            np.testing.assert_allclose(cells / cells.sum(), found, rtol=1e-6)


def test_the_plain_reader_refuses_a_changed_file(tmp_path: Path) -> None:
    """So that its agreement means something."""
    content = bytearray(path_of("format-1-scalar").read_bytes())
    content[-9] ^= 1
    (tmp_path / "changed").write_bytes(content)
    with pytest.raises(AssertionError, match="damaged or edited"):
        plain_reader.read(tmp_path / "changed")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
def test_the_documents_way_to_sign_a_bundle(tmp_path: Path) -> None:
    def keygen(*arguments: str, content: bytes = b"") -> int:
        done = subprocess.run(["ssh-keygen", *arguments], cwd=tmp_path, input=content, capture_output=True, timeout=60)
        return done.returncode

    bundle = path_of("format-1-scalar").read_bytes()
    (tmp_path / "c100.safetensors").write_bytes(bundle)
    assert keygen("-q", "-t", "ed25519", "-N", "", "-C", "", "-f", "key") == 0
    assert keygen("-Y", "sign", "-f", "key", "-n", "mapolicy", "c100.safetensors") == 0
    (tmp_path / "allowed_signers").write_text(f"anna@example.org {(tmp_path / 'key.pub').read_text()}")
    verify = ("-Y", "verify", "-f", "allowed_signers", "-I", "anna@example.org", "-s", "c100.safetensors.sig", "-n")
    assert keygen(*verify, "mapolicy", content=bundle) == 0
    assert keygen(*verify, "file", content=bundle) != 0, "a signature made for another purpose"
    assert keygen(*verify, "mapolicy", content=bundle[:-1] + b"\0") != 0
