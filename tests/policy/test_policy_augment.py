"""The policy in a foreign loop: its loss is the weighted one, its draws repeat, its numbers are those of its parts."""

import copy
import pickle
import random
from collections.abc import Callable
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mapolicy import PolicyAugment, PolicyBundle, train_network
from mapolicy.data.batch_sampler import training_plan
from mapolicy.data.splits import load_splits
from mapolicy.distributed import ALONE
from mapolicy.models.factory import build_network
from mapolicy.models.features import features_and_logits
from mapolicy.policy.policy_augment import weighted_targets
from mapolicy.policy.protocol import policy_of
from mapolicy.runtime.random import generator, seed_for
from mapolicy.train import as_searched
from mapolicy.training.optim import make_optimizer, make_schedule
from mapolicy.transforms.transformation import Transformation
from tests.helpers.make_bundles import DATA

CPU = torch.device("cpu")
CLASSES = 10


def batch(size: int = 16, channels: int = 1, side: int = 8) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, channels, side, side), dtype=torch.uint8, generator=draws)
    return images, torch.randint(0, CLASSES, (size,), generator=draws)


def with_input(bundle: PolicyBundle, **changes: object) -> PolicyBundle:
    """The bundle with another input contract."""
    contract = bundle.manifest.input.model_copy(update=changes)
    return PolicyBundle(bundle.manifest.model_copy(update={"input": contract}), bundle.tensors)


def float64_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, CLASSES)).double()


def relative_difference(network: nn.Module, one: Tensor, other: Tensor) -> float:
    """The largest over the network's tensors, and over the losses themselves."""
    parameters = list(network.parameters())
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (one, other))
    gradients = max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))
    return max(gradients, float(((one - other).abs() / other).detach()))


# ---- what it takes


def test_what_is_no_bundle(bundle_file: Path) -> None:
    for given, says in (
        (str(bundle_file), r"bundle is a str, expected a PolicyBundle; give PolicyBundle.load\(path\)"),
        (bundle_file, r"give PolicyBundle.load\(path\)"),
        (None, "bundle is a NoneType, expected a PolicyBundle$"),
    ):
        with pytest.raises(TypeError, match=says):
            PolicyAugment(given)


@pytest.mark.parametrize("mode", ["frozen", "sampler"])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_copies_and_other_processes_have_the_same_policy(bundle: PolicyBundle, mode: str, again: Callable) -> None:
    images, labels = batch()
    for policy in (PolicyAugment(bundle, mode), PolicyAugment(bundle, mode, device=CPU)):
        policy(images, labels)
        other = again(policy)
        for ours, theirs in zip(policy(images, labels), other(images, labels), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ---- what loss it is


@pytest.mark.parametrize("criterion", [F.cross_entropy, SoftTargetCrossEntropy()], ids=["torch", "timm"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mean_cross_entropy_over_the_targets_is_the_weighted_loss(criterion: Callable, smoothing: float) -> None:
    network, (images, labels) = float64_network(), batch(13)
    weights = torch.rand(13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights /= weights.sum()
    logits = network(images.double() / 255)
    theirs = criterion(logits, weighted_targets(labels, weights, CLASSES, smoothing))
    losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    assert relative_difference(network, theirs, (weights * losses).sum()) < 1e-12
    assert relative_difference(network, theirs, losses.mean()) > 0.01, "equal weights are something else"


@pytest.mark.parametrize(("smoothing", "tolerance"), [(0.0, 1e-12), (0.1, 1e-6)])
def test_the_policys_own_targets_do_the_same(bundle: PolicyBundle, smoothing: float, tolerance: float) -> None:
    """Exactly where B is a power of two, so that B * P_i is not rounded; smoothed targets are rounded to float32."""
    policy, network = PolicyAugment(bundle, label_smoothing=smoothing), float64_network()
    images, labels = batch()
    inputs, targets = policy(images, labels)
    assert (inputs.dtype, inputs.shape) == (torch.float32, images.shape)
    assert (targets.dtype, targets.shape) == (torch.float32, (16, CLASSES))
    policy.step = 0
    weights = policy.weights(*policy.sample(images)).double()
    assert weights.std() > 0
    logits = network(inputs.double())
    losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    theirs = F.cross_entropy(logits, targets.double())
    assert relative_difference(network, theirs, (weights * losses).sum()) < tolerance


def test_a_plain_loop_gives_the_network_that_frozen_training_gives(
    bundle: PolicyBundle, make_train_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter's streams are replaced by the training's; data order, optimiser and network are the same."""
    bundle = with_input(bundle, base_augmentation="flip_crop", cutout=3)
    config = make_train_config(
        epochs=1, learning_rate=0.01, clip_norm=0.0, base_augmentation="flip_crop", cutout=3, seed=4
    )
    expected = train_network(config, bundle).network

    def as_in_training(seed: int, stage: str, stream: str, step: int) -> torch.Generator:
        return generator(seed, "train", stream, step)

    monkeypatch.setattr("mapolicy.policy.pipeline.generator", as_in_training)
    splits = load_splits(config, CPU, "train", bundle.meta_validation)
    network = build_network(config.arch, {}, CLASSES, 1, seed_for(4, "train", "network", 0), CPU).train()
    start = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = make_optimizer(config, network)
    plan = training_plan(config, len(splits.train), 0)
    schedule = make_schedule(config, optimizer, len(plan))
    policy = PolicyAugment(bundle, base_augmentation=True, seed=4, mean=splits.mean, std=splits.std)
    for (step, _), (images, labels) in zip(plan, splits.train.batches(plan), strict=True):
        schedule.step_update(step)
        inputs, targets = policy(images, labels)
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    assert len(plan) == 5
    for before, got, parameter in zip(start, network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, parameter, rtol=1e-4, atol=1e-5)
        assert (parameter - before).norm() > 100 * (got - parameter).norm(), "steps were taken, and the same ones"


def test_sampler_mode_weighs_equally_and_draws_the_same(bundle: PolicyBundle) -> None:
    images, labels = batch()
    inputs, targets = PolicyAugment(bundle, "sampler")(images, labels)
    assert torch.equal(targets, F.one_hot(labels, CLASSES).float())
    assert torch.equal(inputs, PolicyAugment(bundle, "frozen")(images, labels)[0])


# ---- what its parts are


def test_sample_applies_transformations_from_the_bundles_distribution(bundle: PolicyBundle) -> None:
    before = (images := batch()[0]).clone()
    augmented, transformation = PolicyAugment(bundle).sample(images)
    colour = torch.tensor([round(255 * bundle.manifest.input.mean[0])], dtype=torch.uint8)
    assert torch.equal(augmented, transformation.apply(images, bundle.manifest.operations.space, colour))
    assert torch.equal(images, before)
    one = torch.zeros(14, 14)
    one[2, 9] = 1
    only = PolicyBundle(bundle.manifest, {**bundle.tensors, "sampler.probabilities": one})
    assert set(PolicyAugment(only).sample(images)[1].pair.tolist()) == {2 * 14 + 9}


def test_cutout_comes_after_the_transformation_in_the_data_sets_colour(bundle: PolicyBundle) -> None:
    images, _ = batch(side=16)
    plain, _ = PolicyAugment(with_input(bundle, cutout=0)).sample(images)
    colour = round(255 * bundle.manifest.input.mean[0])
    contracts, own = PolicyAugment(with_input(bundle, cutout=4)), PolicyAugment(bundle, cutout=4, mean=[0.9], std=[1])
    for policy in (contracts, own):
        holed, _ = policy.sample(images)
        assert set(holed[holed != plain].tolist()) == {colour}
        assert 8 < int((holed != plain).sum()) / len(images) <= 16
    assert torch.equal(PolicyAugment(with_input(bundle, cutout=4), cutout=0).sample(images)[0], plain)


def test_base_augmentation_is_left_to_the_trainer_unless_asked_for(bundle: PolicyBundle) -> None:
    identity = torch.zeros(14, 14)
    identity[13, 13] = 1
    still = PolicyBundle(bundle.manifest, {**bundle.tensors, "sampler.probabilities": identity})
    images, _ = batch()
    flipping = with_input(still, base_augmentation="flip_crop")
    assert torch.equal(PolicyAugment(flipping).sample(images)[0], images)
    assert not torch.equal(PolicyAugment(flipping, base_augmentation=True).sample(images)[0], images)


@pytest.mark.parametrize("side", [8, 12])
def test_weights_are_the_parts_used_by_hand(bundle: PolicyBundle, side: int) -> None:
    images, _ = batch(side=side)
    draws = torch.Generator().manual_seed(1)
    transformation = Transformation.draw_magnitudes(*torch.randint(0, 14, (2, 16), generator=draws), draws)
    weights = PolicyAugment(bundle).weights(images, transformation)
    pixels, contract = images.float(), bundle.manifest.input
    if side != 8:
        pixels = F.interpolate(pixels, size=(8, 8), mode="bilinear", antialias=True)
    with torch.no_grad():
        inputs = (pixels / 255 - contract.mean[0]) / contract.std[0]
        features, _ = features_and_logits(bundle.build_extractor(CPU), inputs)
        raw = bundle.build_policy()(features, transformation.embed())
    torch.testing.assert_close(weights, raw / raw.sum(), rtol=1e-4, atol=1e-6)
    assert weights.std() > 0
    assert not weights.requires_grad


def test_normalisation_is_the_bundles_or_the_trainers_and_the_weights_do_not_care(bundle: PolicyBundle) -> None:
    images, labels = batch()
    policies = PolicyAugment(bundle), PolicyAugment(bundle, mean=[0.5], std=[0.25])
    augmented, _ = PolicyAugment(bundle).sample(images)
    contract = bundle.manifest.input
    expected = (augmented / 255 - contract.mean[0]) / contract.std[0], (augmented / 255 - 0.5) / 0.25
    targets = []
    for policy, inputs in zip(policies, expected, strict=True):
        got, target = policy(images, labels)
        torch.testing.assert_close(got, inputs)
        torch.testing.assert_close(policy.normalise(augmented), inputs)
        targets.append(target)
    assert torch.equal(*targets)


# ---- randomness, and what surrounds it


def test_draws_depend_on_seed_rank_and_step_alone(bundle: PolicyBundle) -> None:
    images, labels = batch()
    first = PolicyAugment(bundle)
    runs = [first(images, labels) for _ in range(3)]
    resumed = PolicyAugment(bundle)
    resumed.load_state_dict({**first.state_dict(), "step": 1})
    for expected in runs[1:]:
        for one, other in zip(resumed(images, labels), expected, strict=True):
            assert torch.equal(one, other)
    assert resumed.step == first.step == 3
    others = [PolicyAugment(bundle, **other)(images, labels) for other in ({"seed": 1}, {"rank": 1}, {"rank": 11})]
    seen = [inputs for inputs, _ in runs + others]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_a_state_of_another_policy_is_refused(bundle: PolicyBundle) -> None:
    state = PolicyAugment(bundle, seed=1).state_dict()
    with pytest.raises(ValueError, match="the state's seed is 1, this policy's 0"):
        PolicyAugment(bundle).load_state_dict(state)
    with pytest.raises(ValueError, match="the state's digest is 'other'"):
        PolicyAugment(bundle, seed=1).load_state_dict(state | {"digest": "other"})
    PolicyAugment(bundle, seed=1, rank=3).load_state_dict(state)  # one state serves all ranks
    for step in (-1, 1.5, "3", None, True):
        with pytest.raises(ValueError, match="expected a whole number of 0 or more"):
            PolicyAugment(bundle, seed=1).load_state_dict(state | {"step": step})
    with pytest.raises(ValueError, match="the state has no digest and no step; give what"):
        PolicyAugment(bundle, seed=1).load_state_dict({"seed": 1})


def test_global_generators_are_left_alone(bundle: PolicyBundle) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    PolicyAugment(bundle, cutout=4)(*batch())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_an_outer_autocast_changes_nothing(bundle: PolicyBundle) -> None:
    images, labels = batch()
    expected = PolicyAugment(bundle)(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        got = PolicyAugment(bundle)(images, labels)
        assert (images.float()[0, 0] @ images.float()[0, 0]).dtype == torch.bfloat16, "it was on"
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives(bundle: PolicyBundle) -> None:
    images, labels = batch()
    expected = PolicyAugment(bundle)(images, labels)
    before = torch.cuda.get_rng_state()
    got = PolicyAugment(bundle, device="cuda")(images.cuda(), labels.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), before)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3)


def test_a_trainer_finds_nothing_of_it_to_train_or_save(bundle: PolicyBundle) -> None:
    network = float64_network()
    names = list(network.state_dict())
    network.policy = PolicyAugment(bundle)
    assert list(network.state_dict()) == names


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "finetune"}, "use `mapolicy train --mode finetune`"),
        ({"mode": "uniform"}, "mode 'uniform' is not one of frozen, sampler"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0, expected a number in \[0, 1\)"),
        ({"cutout": -1}, "cutout is -1"),
        ({"mean": [0.5]}, "give both or neither"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "a finite number for each of 1 channels"),
        *(
            ({"mean": [mean], "std": [std]}, "a finite number for each of 1 channels, std above 0")
            for mean, std in ((0.5, 0.0), (0.5, -1.0), (0.5, nan), (0.5, inf), (nan, 1.0), (inf, 1.0))
        ),
    ],
)
def test_arguments_that_cannot_be_meant(bundle: PolicyBundle, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyAugment(bundle, **arguments)


def test_random_resized_crop_is_the_data_sets(bundle: PolicyBundle) -> None:
    cropping = with_input(bundle, base_augmentation="random_resized_crop")
    with pytest.raises(ValueError, match="crop and flip in the data set"):
        PolicyAugment(cropping, base_augmentation=True)
    PolicyAugment(cropping)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(16, 1, 8, 8), r"images are torch.float32, expected torch.uint8; end the loader's transform with"),
        (batch(channels=3)[0], "images have 3 channels, the policy was searched on 1"),
        (batch()[0][0], r"images have shape \(1, 8, 8\), expected a batch \[B, 1, H, W\]"),
        (batch()[0][:0], r"images have shape \(0, 1, 8, 8\)"),
        (batch()[0].to("meta"), "images are on meta, the policy is on cpu; move them there first"),
    ],
)
def test_images_of_another_kind(bundle: PolicyBundle, images: Tensor, message: str) -> None:
    policy = PolicyAugment(bundle, device="cpu")
    _, transformation = policy.sample(batch()[0])
    labels = torch.zeros(len(images), dtype=torch.int64)
    calls = (
        lambda: policy(images, labels),
        lambda: policy.sample(images),
        lambda: policy.normalise(images),
        lambda: policy.weights(images, transformation),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert policy.step == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(16, CLASSES), r"labels are torch.float32 \(16, 10\), expected torch.int64 \(16,\)"),
        (torch.zeros(16, dtype=torch.int32), "labels are torch.int32"),
        (torch.zeros(15, dtype=torch.int64), r"\(15,\), expected torch.int64 \(16,\)"),
        (torch.full((16,), 10), r"labels lie in \[10, 10\], the bundle's 10 classes from 0 on"),
        (torch.full((16,), -1), r"labels lie in \[-1, -1\]"),
        (torch.zeros(16, dtype=torch.int64, device="meta"), "labels are on meta, images on cpu"),
    ],
)
def test_labels_of_another_kind(bundle: PolicyBundle, labels: Tensor, message: str) -> None:
    policy = PolicyAugment(bundle)
    with pytest.raises(ValueError, match=message):
        policy(batch()[0], labels)
    assert policy.step == 0, "a refused batch draws nothing"


def test_transformations_of_other_images(bundle: PolicyBundle) -> None:
    policy = PolicyAugment(bundle)
    augmented, transformation = policy.sample(batch()[0])
    with pytest.raises(ValueError, match="15 images came with 16 transformations"):
        policy.weights(augmented[:15], transformation)


def test_a_loader_worker_is_no_place_for_it(bundle: PolicyBundle) -> None:
    policy = PolicyAugment(bundle)
    images, labels = batch(4)
    pairs = list(zip(images, labels, strict=True))

    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return policy(*(torch.stack(each) for each in zip(*samples, strict=True)))

    assert len(list(DataLoader(pairs, batch_size=2, collate_fn=collate))) == 2
    with pytest.raises(RuntimeError, match="call it in the training loop, on the batch that the loader yields"):
        list(DataLoader(pairs, batch_size=2, collate_fn=collate, num_workers=1))


def test_a_policy_that_was_searched_with_equal_weights_builds_no_extractor(
    make_train_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = PolicyBundle.load(DATA / "format-2-levels.safetensors")
    monkeypatch.setattr(PolicyBundle, "build_extractor", lambda *_: pytest.fail("it sees no images"))
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    _, targets = PolicyAugment(levels)(images, torch.arange(4))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    config = make_train_config(mode="frozen")
    assert policy_of(levels).weights(as_searched(config, levels), torch.device("cpu"), ALONE) is None


@pytest.mark.parametrize("name", ["images", "labels"])
@pytest.mark.parametrize(
    ("kind", "call"),
    [(list, r"torch\.stack\(LIST\)"), (tuple, r"torch\.stack\(LIST\)"), (np.asarray, r"torch\.from_numpy\(ARRAY\)")],
)
def test_lists_and_arrays_are_refused_with_the_call_that_makes_a_tensor(
    bundle: PolicyBundle, name: str, kind: Callable[[Tensor], object], call: str
) -> None:
    given = dict(zip(("images", "labels"), batch(), strict=True))
    given[name] = kind(given[name])
    with pytest.raises(ValueError, match=rf"{name} are a \w+, expected a torch\.Tensor, u?int.*; pass {call} instead"):
        PolicyAugment(bundle)(given["images"], given["labels"])
