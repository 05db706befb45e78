"""A bundle's policy at work: the extractor's features and the weights, against the parts used by hand."""

import pytest
import torch
import torch.nn.functional as F

from mapolicy import PolicyAugment, PolicyBundle, Transformation, search_policy, train_network
from mapolicy.models.features import features_and_logits
from mapolicy.models.fuse import agree
from mapolicy.policy import frozen as reuse
from mapolicy.policy.augmentations import SampledTransformations
from mapolicy.policy.frozen import FrozenExtractor, FrozenWeights, extractor_dtype
from mapolicy.policy.pipeline import AugmentedBatch
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.training.iteration import WeightedIteration
from mapolicy.training.setup import TrainingSetup

CPU = torch.device("cpu")


def images(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (12, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_hand(bundle: PolicyBundle, pixels: torch.Tensor) -> torch.Tensor:
    contract = bundle.manifest.input
    inputs = (pixels / 255 - torch.tensor(contract.mean)[:, None, None]) / torch.tensor(contract.std)[:, None, None]
    with torch.no_grad():
        return features_and_logits(bundle.build_extractor(CPU), inputs)[0]


def test_features_are_the_proxys_in_evaluation_mode_with_its_normalisation(bundle: PolicyBundle) -> None:
    features = FrozenExtractor(bundle, CPU)(images(8))
    assert features.shape == (12, 64)
    assert not features.requires_grad
    torch.testing.assert_close(features, by_hand(bundle, images(8).float()), rtol=1e-4, atol=1e-5)
    one = FrozenExtractor(bundle, CPU)(images(8)[:1])
    torch.testing.assert_close(one, features[:1], rtol=1e-4, atol=1e-5, msg="no batch statistics")


@pytest.mark.parametrize(("height", "width"), [(20, 20), (20, 8), (8, 20)])
def test_images_of_another_size_are_brought_to_the_proxys(bundle: PolicyBundle, height: int, width: int) -> None:
    pixels = images(20)[:, :, :height, :width]
    features = FrozenExtractor(bundle, CPU)(pixels)
    smaller = F.interpolate(pixels.float(), size=(8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(features, by_hand(bundle, smaller), rtol=1e-4, atol=1e-5)


def batch_of_images() -> AugmentedBatch:
    generator = torch.Generator().manual_seed(1)
    transformation = Transformation.draw_magnitudes(*torch.randint(0, 14, (2, 12), generator=generator), generator)
    return AugmentedBatch(images(8), torch.empty(0), torch.zeros(12), transformation)


def test_weights_are_the_policys_outputs_normalised(bundle: PolicyBundle) -> None:
    batch, policy = batch_of_images(), bundle.build_policy()
    assert batch.transformation is not None
    weights = FrozenWeights(FrozenExtractor(bundle, CPU), policy)(batch)
    with torch.no_grad():
        raw = policy(by_hand(bundle, images(8).float()), batch.transformation.embed())
    torch.testing.assert_close(weights, raw / raw.sum(), rtol=1e-4, atol=1e-6)
    assert weights.sum().item() == pytest.approx(1)
    assert not weights.requires_grad
    assert weights.std() > 0


@pytest.mark.parametrize("bias", [-1e6, -150.0, 1e6])
def test_a_saturated_policy_weighs_still(bundle: PolicyBundle, bias: float) -> None:
    """All raw outputs are 0 in float32, or 1; such a file is in order."""
    tensors = dict(bundle.tensors) | {"policy.output.bias": torch.tensor([bias])}
    saturated = PolicyBundle.from_bytes(PolicyBundle(bundle.manifest, tensors).to_bytes())
    weigh = FrozenWeights(FrozenExtractor(saturated, CPU), saturated.build_policy())
    weights = weigh(batch_of_images())
    assert weights.isfinite().all()
    assert float(weights.sum()) == pytest.approx(1)
    if bias == 1e6:
        assert torch.equal(weights, torch.full_like(weights, 1 / len(weights)))


def test_the_extractor_is_folded_and_the_weights_stay(bundle: PolicyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the network as it is: float32 rounding, and the same order of the samples."""
    batch, given = batch_of_images(), []

    def unfused(network, function, probe):
        given.append((network, probe))
        return network

    frozen = FrozenWeights(FrozenExtractor(bundle, CPU), bundle.build_policy())(batch)
    monkeypatch.setattr(reuse, "fuse_conv_bn", unfused)
    extractor = FrozenExtractor(bundle, CPU)
    plain = FrozenWeights(extractor, bundle.build_policy())(batch)
    torch.testing.assert_close(frozen, plain, rtol=1e-5, atol=1e-9)
    assert torch.equal(frozen.argsort(), plain.argsort())
    ((network, probe),) = given
    assert extractor._network is network
    assert not network.training
    assert probe.shape == (reuse.PROBE_IMAGES, 1, 8, 8)
    assert probe.std() > 0.5, "normalised pixels"


def test_equal_extractors_give_equal_bytes(bundle: PolicyBundle) -> None:
    one, two = (FrozenExtractor(bundle, CPU)(images(8)) for _ in range(2))
    assert torch.equal(one, two)


def test_features_have_no_graph_and_may_stand_in_one(bundle: PolicyBundle) -> None:
    features = FrozenExtractor(bundle, CPU)(images(8))
    assert features.grad_fn is None
    assert not features.is_inference()
    policy = bundle.build_policy()
    policy(features, torch.zeros(12, 28)).sum().backward()
    assert policy.feature_layer is not None
    assert policy.feature_layer.weight.grad is not None


def test_a_training_step_leaves_the_extractor_alone(bundle: PolicyBundle, make_train_config) -> None:
    setup = TrainingSetup.build(make_train_config(), CPU)
    extractor = FrozenExtractor(bundle, CPU)
    network = extractor._network
    assert network is not None
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    own = {name: tensor.clone() for name, tensor in setup.network.state_dict().items()}
    sampler = SampledTransformations(TransformationSampler(), "metaaugment-v1")
    iteration = WeightedIteration(setup, sampler, FrozenWeights(extractor, bundle.build_policy()))
    for step, batch in enumerate(setup.training.batches([(0, torch.arange(64)), (1, torch.arange(64, 128))])):
        iteration(step, batch, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(torch.equal(tensor, own[name]) for name, tensor in setup.network.state_dict().items()), "it trained"
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_a_policy_that_reads_no_features_never_runs_the_extractor(
    mode: str, make_search_config, make_train_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = search_policy(make_search_config(epochs=1, policy_input="embedding"))

    def build(*_: object) -> None:
        raise AssertionError("the extractor was built")

    monkeypatch.setattr(PolicyBundle, "build_extractor", build)
    assert FrozenExtractor(bundle, CPU)(images(8)).shape == (12, 0)
    train_network(make_train_config(epochs=1, mode=mode), bundle)
    if mode == "frozen":
        _, targets = PolicyAugment(bundle)(images(8), torch.zeros(12, dtype=torch.int64))
        assert targets[:, 0].std() > 0


def test_half_precision_is_close(bundle: PolicyBundle) -> None:
    exact = FrozenExtractor(bundle, CPU)
    half = FrozenExtractor(bundle, CPU, torch.bfloat16)
    assert next(half._network.parameters()).dtype == torch.bfloat16
    expected, got = exact(images(8)), half(images(8))
    assert got.dtype == torch.float32
    assert agree(got, expected, 0.03)
    assert not agree(got, expected, 1e-4), "it was half precision"
    weights = [FrozenWeights(extractor, bundle.build_policy())(batch_of_images()) for extractor in (exact, half)]
    torch.testing.assert_close(*weights, rtol=0.03, atol=0)


@pytest.mark.parametrize("trouble", ["differs", "fails"])
def test_half_precision_is_left_where_it_will_not_do(
    trouble: str, bundle: PolicyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stubborn(network, inputs):
        if inputs.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float but found BFloat16")
        return features(network, inputs)

    expected, features = FrozenExtractor(bundle, CPU)(images(8)), reuse.deep_features
    if trouble == "differs":
        monkeypatch.setattr(reuse, "HALF_TOLERANCE", 0.0)
    else:
        monkeypatch.setattr(reuse, "deep_features", stubborn)
    assert torch.equal(FrozenExtractor(bundle, CPU, torch.bfloat16)(images(8)), expected)


def test_an_outer_autocast_changes_nothing(bundle: PolicyBundle) -> None:
    expected = FrozenExtractor(bundle, CPU)(images(8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FrozenExtractor(bundle, CPU)(images(8)), expected)


def test_half_precision_is_for_cards_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=supported: has)
        assert extractor_dtype(torch.device("cuda")) == expected
        assert extractor_dtype(CPU) == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives(bundle: PolicyBundle) -> None:
    expected = FrozenExtractor(bundle, CPU)(images(8))
    got = FrozenExtractor(bundle, torch.device("cuda"))(images(8).cuda()).cpu()
    assert agree(got, expected, 0.03)


def test_rejecting_keeps_the_heavier_samples_alone(bundle: PolicyBundle) -> None:
    batch, extractor = batch_of_images(), FrozenExtractor(bundle, CPU)
    weights = FrozenWeights(extractor, bundle.build_policy())(batch)
    kept = FrozenWeights(extractor, bundle.build_policy(), rejects=True)(batch)
    heavier = weights >= weights.mean()
    assert 0 < heavier.sum() < len(weights)
    assert torch.equal(kept > 0, heavier)
    assert kept[heavier].tolist() == pytest.approx([1 / int(heavier.sum())] * int(heavier.sum()))
