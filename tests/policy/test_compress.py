"""Smaller bundles: what is left out, what stays the same, and how a difference is measured."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mapolicy import PolicyBundle
from mapolicy.bundle.format import serialise
from mapolicy.bundle.manifest import DTYPES
from mapolicy.config import SearchConfig
from mapolicy.errors import InputError
from mapolicy.policy.compress import (
    CUT,
    IMAGES,
    LONGEST_NOTE,
    effect_on_weights,
    rank_correlation,
    slim,
    synthetic_images,
)
from mapolicy.policy.policy_bundle import to_raw
from tests.policy.test_policy_bundle import make_bundle

CPU = torch.device("cpu")


def with_weights_that_differ(bundle: PolicyBundle) -> PolicyBundle:
    """The last layer starts at zero, which gives every sample the same weight."""
    policy = bundle.build_policy().state_dict()
    draws = torch.Generator().manual_seed(0)
    policy["output.weight"] = torch.randn(policy["output.weight"].shape, generator=draws)
    tensors = {name: to_raw(tensor) for name, tensor in bundle.tensors.items()}
    tensors |= {f"policy.{name}": to_raw(tensor) for name, tensor in policy.items()}
    return PolicyBundle.from_bytes(serialise(bundle.manifest.draft(), tensors))


@pytest.fixture(scope="module")
def whole() -> PolicyBundle:
    return with_weights_that_differ(make_bundle("wrn10_1"))


def test_the_classifier_goes_and_nothing_changes(whole: PolicyBundle) -> None:
    smaller, effect = slim(whole, "float32")
    assert whole.has_classifier
    assert not smaller.has_classifier
    assert whole.tensors.keys() - smaller.tensors.keys() == {"extractor.fc.weight", "extractor.fc.bias"}
    assert effect.rank_correlation == pytest.approx(1)
    assert effect.largest_difference == 0
    assert len(smaller.to_bytes()) < len(whole.to_bytes())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_halves_the_file_and_its_effect_is_told(whole: PolicyBundle, dtype: str, tmp_path: Path) -> None:
    smaller, effect = slim(whole, dtype)
    smaller.save(tmp_path / "a")
    loaded = PolicyBundle.load(tmp_path / "a", expect_digest=smaller.digest)
    extractor = {name: tensor for name, tensor in loaded.tensors.items() if name.startswith("extractor.")}
    assert {tensor.dtype for tensor in extractor.values()} == {getattr(torch, dtype), torch.int64}
    assert 0 < effect.largest_difference < 0.1
    assert 0.9 < effect.rank_correlation < 1
    assert effect == effect_on_weights(whole, loaded)
    assert whole.digest in loaded.manifest.note
    assert f"{effect.rank_correlation:.6f}" in loaded.manifest.note
    assert loaded.manifest.note.endswith(whole.manifest.note)
    for name in whole.tensors.keys() - extractor.keys():
        if not name.startswith("extractor."):
            assert torch.equal(loaded.tensors[name], whole.tensors[name]), name


def test_bfloat16_is_the_coarser(whole: PolicyBundle) -> None:
    exact, coarse = (slim(whole, dtype)[1] for dtype in ("float16", "bfloat16"))
    assert exact.largest_difference < coarse.largest_difference / 3, "3 bits of the mantissa"


def test_the_largest_difference_is_a_weights(whole: PolicyBundle) -> None:
    """Another policy network, whose weights are known: a bias moves all raw outputs."""
    images = synthetic_images(whole.manifest.input)
    assert effect_on_weights(whole, whole, images).largest_difference == 0
    other = with_weights_that_differ(make_bundle("wrn10_1", dtype="bfloat16"))
    assert effect_on_weights(whole, other, images).largest_difference > 0


def test_the_effect_on_a_saturated_policy_is_a_number(whole: PolicyBundle) -> None:
    tensors = {name: to_raw(tensor) for name, tensor in whole.tensors.items()}
    tensors["policy.output.weight"] = to_raw(whole.tensors["policy.output.weight"] * -1e5)
    saturated = PolicyBundle.from_bytes(serialise(whole.manifest.draft(), tensors))
    effect = slim(saturated, "bfloat16")[1]
    assert math.isfinite(effect.rank_correlation)
    assert math.isfinite(effect.largest_difference)


def test_a_note_that_becomes_too_long_says_so(whole: PolicyBundle) -> None:
    def noted(note: str) -> PolicyBundle:
        tensors = {name: to_raw(tensor) for name, tensor in whole.tensors.items()}
        return PolicyBundle.from_bytes(serialise(whole.manifest.draft(note=note), tensors))

    head = slim(noted(""), "float32")[0].manifest.note
    assert head.endswith("samples.")
    fits = "x" * (LONGEST_NOTE - len(head) - 1)
    assert slim(noted(fits), "float32")[0].manifest.note.endswith(f"\n{fits}")
    for note in (f"{fits}x", "x" * LONGEST_NOTE):
        long = noted(note)
        found = slim(long, "float32")[0].manifest.note
        assert len(found) == LONGEST_NOTE
        assert found.startswith(f"Made of {long.digest}: ")
        assert found.endswith(f"x{CUT}")


def test_what_float16_cannot_hold_is_named(whole: PolicyBundle) -> None:
    tensors = {name: to_raw(tensor) for name, tensor in whole.tensors.items()}
    tensors["extractor.fc.bias"] = to_raw(torch.full_like(whole.tensors["extractor.fc.bias"], 1e6))
    large = PolicyBundle.from_bytes(serialise(whole.manifest.draft(), tensors))
    with pytest.raises(InputError, match=r"extractor.fc.bias has numbers that it cannot hold; use bfloat16"):
        slim(large, "float16")
    slim(large, "bfloat16")


def test_a_part_of_the_classifier_is_no_bundle(whole: PolicyBundle) -> None:
    tensors = {name: to_raw(tensor) for name, tensor in whole.tensors.items() if name != "extractor.fc.bias"}
    with pytest.raises(InputError, match=r"extractor.fc.bias' of wrn10_1 is missing"):
        PolicyBundle.from_bytes(serialise(whole.manifest.draft(), tensors))


def test_a_classifier_that_is_not_there_does_not_matter(whole: PolicyBundle) -> None:
    smaller, _ = slim(whole, "float32")
    images = torch.rand(3, 1, 8, 8)
    networks = [bundle.build_extractor(CPU) for bundle in (whole, smaller)]
    features = [network.forward_head(network.forward_features(images), pre_logits=True) for network in networks]
    assert torch.equal(*features)


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=30, unique=True), st.randoms(use_true_random=False))
def test_rank_correlation_is_spearmans(values: list[float], draws) -> None:
    other = draws.sample(values, len(values))
    rank = [[sorted(row).index(value) for value in row] for row in (values, other)]
    expected = np.corrcoef(rank)[0, 1]
    a, b = (torch.tensor(row, dtype=torch.float64) for row in (values, other))
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-9)
    assert rank_correlation(a, -a) == pytest.approx(-1)


def test_synthetic_images_look_like_the_data_set(whole: PolicyBundle) -> None:
    contract = whole.manifest.input.model_copy(
        update={"size": 32, "channels": 3, "mean": (0.5, 0.4, 0.6), "std": (0.1,) * 3}
    )
    images = synthetic_images(contract)
    assert images.shape == (IMAGES, 3, 32, 32)
    assert torch.equal(images, synthetic_images(contract))
    pixels = images.float() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor([0.5, 0.4, 0.6]), atol=0.01, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.full((3,), 0.1), atol=0.01, rtol=0)
    neighbours = np.corrcoef(pixels[..., 1:].flatten(), pixels[..., :-1].flatten())[0, 1]
    assert neighbours > 0.8


def test_the_setting_knows_the_formats_dtypes() -> None:
    assert tuple(SearchConfig.json_schema()["properties"]["extractor_dtype"]["enum"]) == DTYPES
