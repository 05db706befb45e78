"""Training end to end, on digits: frozen, fine-tuned, baselines, and the checks between a bundle and a run."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, load_model

from mapolicy import PolicyBundle, search_policy, train_network
from mapolicy.data.batch_sampler import training_plan
from mapolicy.data.splits import load_splits
from mapolicy.errors import InputError, UsageError
from mapolicy.models.factory import build_network
from mapolicy.models.features import features_and_logits
from mapolicy.policy.augmentations import SampledTransformations
from mapolicy.policy.import_policy import import_policy
from mapolicy.policy.pipeline import Pipeline
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.runtime.random import seed_for
from mapolicy.training.callbacks import Reporter
from mapolicy.transforms.basic import Normalisation

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "limit"), [("learned", 0.0), ("learned", 1.001), ("sampler-only", 0.0), ("weights-only", 0.0)]
)
def test_frozen_training_is_the_weighted_loss_written_out(
    bundle: PolicyBundle, make_train_config, name: str, limit: float
) -> None:
    """A plain loop with the bundle's parts: sample from p_jk, weigh by the extractor and theta, SGD; or with half."""
    # A small rate: float32 rounding must not grow to where the two could not be told from different mathematics.
    config = make_train_config(
        policy=name,
        epochs=1,
        learning_rate=0.01,
        clip_norm=0.0,
        weight_decay=0.0,
        optimizer="momentum",
        weight_limit=limit,
    )
    got = train_network(config, bundle).network

    splits = load_splits(config, CPU, "train", bundle.meta_validation)
    network = build_network(
        config.arch, {}, len(splits.classes), splits.channels, seed_for(0, "train", "network", 0), CPU
    ).train()
    policy, extractor = bundle.build_policy(), bundle.build_extractor(CPU)
    pipeline = Pipeline(config, splits.mean, splits.std, CPU)
    uniform = torch.full((14, 14), 1 / 196)
    drawn = TransformationSampler(probabilities=uniform if name == "weights-only" else bundle.probabilities)
    sampler = SampledTransformations(drawn, "metaaugment-v1")
    velocity = [torch.zeros_like(parameter) for parameter in network.parameters()]
    plan = training_plan(config, len(splits.train), 0)
    contract = bundle.manifest.input
    for (step, _), (images, labels) in zip(plan, splits.train.batches(plan), strict=True):
        batch = pipeline.augment(images, labels, sampler, step)
        with torch.no_grad():
            mean = torch.tensor(contract.mean)[:, None, None]
            std = torch.tensor(contract.std)[:, None, None]
            features, _ = features_and_logits(extractor, (batch.images.float() / 255 - mean) / std)
            raw = policy(features, batch.transformation.embed())
            raw = torch.ones_like(raw) if name == "sampler-only" else raw
            if limit:
                assert raw.max() > limit * raw.mean(), "some weight is limited"
                raw = raw.clamp(raw.mean() / limit, raw.mean() * limit)
        losses = F.cross_entropy(network(batch.inputs), batch.labels, reduction="none")
        gradients = torch.autograd.grad((losses * raw / raw.sum()).sum(), list(network.parameters()))
        rate = 0.01 * (1 + torch.cos(torch.tensor(torch.pi * step / len(plan)))).item() / 2
        with torch.no_grad():
            for parameter, gradient, momentum in zip(network.parameters(), gradients, velocity, strict=True):
                momentum.mul_(0.9).add_(gradient)
                parameter -= rate * momentum
    for (key, expected), actual in zip(network.named_parameters(), got.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, msg=key)


def test_frozen_training_leaves_the_bundle_alone(bundle: PolicyBundle, make_train_config) -> None:
    before = bundle.to_bytes()
    result = train_network(make_train_config(epochs=1), bundle)
    assert bundle.to_bytes() == before
    assert result.digest == bundle.digest
    assert result.refined is None
    assert result.weight_spread > 0


def test_finetuning_goes_on_learning_and_keeps_the_extractor(bundle: PolicyBundle, make_train_config) -> None:
    result = train_network(make_train_config(mode="finetune"), bundle)
    refined = result.refined
    assert refined is not None
    assert refined.digest != bundle.digest
    for name, tensor in bundle.tensors.items():
        same = torch.equal(tensor, refined.tensors[name])
        learned = name.startswith(("policy.", "sampler.")) or name == "alpha"
        assert same != learned, name
    assert "fine-tuned" in refined.manifest.note
    assert PolicyBundle.from_bytes(refined.to_bytes()).digest == refined.digest


def test_a_network_without_a_true_gradient_is_trained_frozen_and_finetuned(
    bundle: PolicyBundle, make_train_config
) -> None:
    changes = {"arch": "pyramidnet110_a48", "model_args": {"depth": 8}, "epochs": 1, "batch_size": 128}
    notes: dict[str, list[str]] = {"frozen": [], "finetune": []}
    refined = {}
    for mode, heard in notes.items():
        reporter = Reporter()
        reporter.on_note = heard.append  # type: ignore[method-assign]
        refined[mode] = train_network(make_train_config(mode=mode, **changes), bundle, reporter).refined
    assert notes["frozen"] == [], "as a frozen target nothing is special about it"
    assert sum("noise at its mean" in note for note in notes["finetune"]) == 1
    assert refined["finetune"].manifest.note.endswith(" Hypergradient with the noise at its mean.")


def test_a_per_layer_alpha_can_be_finetuned_on_another_network(make_search_config, make_train_config) -> None:
    searched = search_policy(make_search_config(epochs=1, alpha="per-layer"))
    refined = train_network(make_train_config(epochs=1, mode="finetune"), searched).refined
    assert refined is not None
    assert refined.alpha.shape == searched.alpha.shape


@pytest.mark.parametrize("policy", ["none", "uniform", "trivialaugment", "randaugment", "autoaugment"])
def test_baselines_weigh_all_samples_equally(make_train_config, policy: str) -> None:
    result = train_network(make_train_config(policy=policy, epochs=1))
    assert result.weight_spread == pytest.approx(0, abs=1e-6)
    assert result.digest is None
    assert 0 <= result.test_top1 <= result.test_top5 <= 100


def test_policies_share_weights_order_and_split(bundle: PolicyBundle, make_train_config, monkeypatch) -> None:
    """Everything but the policy is the same for the same seed."""
    seen: dict[str, list] = {}
    original = Pipeline.augment

    def spy(self, images, labels, augmentation, step, *progress):
        if self.config.copies == 1 and type(augmentation).__name__ == seen["kind"]:
            seen["batches"].append((step, labels.tolist()))
        return original(self, images, labels, augmentation, step, *progress)

    monkeypatch.setattr(Pipeline, "augment", spy)
    kinds = {"learned": "SampledTransformations", "uniform": "SampledTransformations", "randaugment": "PublishedPolicy"}
    batches = {}
    for policy, kind in kinds.items():
        seen.update(kind=kind, batches=[])
        train_network(make_train_config(policy=policy, epochs=1), bundle)
        batches[policy] = seen["batches"]
    assert len(batches["learned"]) == 5
    assert batches["learned"] == batches["uniform"] == batches["randaugment"]


def test_the_test_split_is_opened_once_at_the_end(make_train_config, monkeypatch: pytest.MonkeyPatch) -> None:
    from mapolicy.data.splits import DataSplits
    from mapolicy.training.trainer import Trainer

    events: list[str] = []
    iterated, test = Trainer.after_iteration, DataSplits.test

    def note_iteration(self, *arguments) -> None:
        events.append("iteration")
        iterated(self, *arguments)

    def note_test(self):
        events.append("test")
        return test(self)

    monkeypatch.setattr(Trainer, "after_iteration", note_iteration)
    monkeypatch.setattr(DataSplits, "test", note_test)
    train_network(make_train_config(policy="none"))
    assert events == ["iteration"] * 10 + ["test"]


def test_validation_images_are_trained_on_only_if_asked(bundle: PolicyBundle, make_train_config) -> None:
    without = train_network(make_train_config(epochs=1, batch_size=32), bundle)
    included = train_network(make_train_config(epochs=1, batch_size=32, include_validation=True), bundle)
    assert without.validation_top1 is not None
    assert included.validation_top1 is None


def test_run_folder_holds_the_weights(make_train_config, tmp_path) -> None:
    config = make_train_config(policy="none", epochs=1)
    result = train_network(config, run_dir=tmp_path / "run")
    weights = load_file(tmp_path / "run" / "network.safetensors")
    assert set(weights) == set(result.network.state_dict())
    assert all(torch.equal(weights[name], tensor) for name, tensor in result.network.state_dict().items())
    figures = json.loads((tmp_path / "run" / "result.json").read_text())
    assert figures["test_top1"] == result.test_top1
    assert figures["test_balanced_accuracy"] == result.test.balanced_accuracy
    assert figures["test_calibration_error"] == result.test.calibration_error
    assert figures["test_classes"]["3"]["recall"] == pytest.approx(result.test.classes[3].recall, abs=0.01)
    assert figures["policy"] == "none"


def test_the_network_that_is_returned_is_ready_for_use(make_train_config) -> None:
    """Used as it is, it has the accuracy that was measured."""
    config = make_train_config(policy="none", epochs=1)
    result = train_network(config)
    assert not any(module.training for module in result.network.modules())
    splits = load_splits(config, CPU, "train")
    images, labels = next(splits.test().batches([(0, torch.arange(len(splits.test())))]))
    with torch.no_grad():
        logits = result.network(Normalisation(splits.mean, splits.std, CPU)(images))
    right = 100 * (logits.argmax(1) == labels).double().mean().item()
    assert right == pytest.approx(result.test_top1, abs=0.5)  # sums of other batches are rounded differently


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_interrupted_and_resumed_gives_the_same_network(
    bundle: PolicyBundle, make_train_config, tmp_path, interrupted_after, mode: str
) -> None:
    config = make_train_config(mode=mode)
    whole = train_network(config, bundle)
    with interrupted_after(6):
        train_network(config, bundle, run_dir=tmp_path / "run")
    resumed = train_network(config, bundle, run_dir=tmp_path / "run", resume=True)
    state = whole.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in resumed.network.state_dict().items())
    assert resumed.test_top1 == whole.test_top1
    if mode == "finetune":
        assert resumed.refined is not None
        assert whole.refined is not None
        assert resumed.refined.digest == whole.refined.digest


def test_resume_with_another_bundle_is_refused(bundle: PolicyBundle, make_search_config, make_train_config, tmp_path):
    train_network(make_train_config(epochs=1), bundle, run_dir=tmp_path / "run")
    other = search_policy(make_search_config(epochs=1, seed=9))
    with pytest.raises(InputError, match=r"is of another run: bundle '"):
        train_network(make_train_config(epochs=1), other, run_dir=tmp_path / "run", resume=True)


@pytest.mark.parametrize("policy", ["learned", "sampler-only", "weights-only"])
def test_a_searched_policy_needs_a_bundle(make_train_config, policy: str) -> None:
    with pytest.raises(UsageError, match=f"policy {policy}: there is no bundle"):
        train_network(make_train_config(policy=policy))


@pytest.mark.parametrize("policy", ["sampler-only", "weights-only"])
def test_a_dataset_level_policy_has_no_halves(make_train_config, policy: str) -> None:
    listed = import_policy("randaugment:2,9")
    with pytest.raises(UsageError, match=f"policy {policy}: a dataset-level policy has no weights"):
        train_network(make_train_config(policy=policy), listed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_seed": 5}, "setting split_seed: is 5, the bundle was searched with 0"),
        ({"train_per_class": 20}, "setting train_per_class: is 20.0"),
        ({"operation_space": "wide"}, "setting operation_space: is 'wide'"),
    ],
)
def test_settings_that_contradict_the_bundle_are_refused(
    bundle: PolicyBundle, make_train_config, change: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_network(make_train_config(**change), bundle)


def with_data(bundle: PolicyBundle, **changes) -> PolicyBundle:
    """The bundle as if it had been searched on other data."""
    data = bundle.manifest.dataset.model_copy(update=changes)
    return PolicyBundle(bundle.manifest.model_copy(update={"dataset": data}), bundle.tensors)


OTHER_DATA = {
    "fingerprint": (
        lambda data: {"fingerprint": "0" * 64},
        "its images are not those of the bundle's digits (fingerprint ",
    ),
    "a class": (
        lambda data: {"classes": ("zero", *data.classes[1:])},
        "its class 0 is '0', the bundle's is 'zero'",
    ),
    "a class with escapes": (
        lambda data: {"classes": (*data.classes[:9], "\u00e9")},
        "its class 9 is '9', the bundle's is '\\xe9'",
    ),
    "number of classes": (lambda data: {"classes": data.classes[:4]}, "has 10 classes, the bundle's data set 4"),
    "number of images": (
        lambda data: {"counts": data.counts.model_copy(update={"images": 2000})},
        "has 1797 images to draw from, the bundle's data set 2000",
    ),
}


@pytest.mark.parametrize("kind", OTHER_DATA)
def test_another_data_set_is_refused_before_its_images_are_read(
    bundle: PolicyBundle, make_train_config, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    change, says = OTHER_DATA[kind]
    if kind != "fingerprint":
        monkeypatch.setattr("mapolicy.data.splits.SplitLoader.load", lambda *_: pytest.fail("images were read"))
    with pytest.raises(InputError) as problem:
        train_network(make_train_config(), with_data(bundle, **change(bundle.manifest.dataset)))
    assert says in str(problem.value)
    assert "or add --allow-dataset-mismatch" in str(problem.value)


def test_a_wrong_data_set_is_not_explained_by_indices(bundle: PolicyBundle, make_train_config) -> None:
    """Classes and sizes agree, but images that the policy learned from would be tested on."""
    settings = make_train_config()
    test = set(range(bundle.manifest.dataset.counts.images))
    splits = load_splits(settings, CPU, "train")
    test -= {*splits.train.indices.tolist(), *splits.meta_validation.indices.tolist()}
    held_out = torch.tensor(sorted(test)[: len(bundle.meta_validation)])
    tensors = dict(bundle.tensors) | {"split.meta_validation": held_out}
    with pytest.raises(InputError, match="images that the policy learned from would be test images"):
        train_network(settings, PolicyBundle(bundle.manifest, tensors))


class Heard(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def test_another_data_set_may_be_allowed_and_is_split_anew(bundle: PolicyBundle, make_train_config, tmp_path) -> None:
    """Other classes, another number of them, other images: the bundle's indices play no role, and all of it is told."""
    counts = bundle.manifest.dataset.counts.model_copy(update={"images": 5000})
    other = with_data(bundle, classes=("zero", "one"), counts=counts, fingerprint="0" * 64)
    other = PolicyBundle(other.manifest, {**bundle.tensors, "split.meta_validation": torch.arange(4000, 4100)})
    # The extractor's head is as it was: only its features are used.
    object.__setattr__(other, "build_extractor", bundle.build_extractor)
    heard, config = Heard(), make_train_config(epochs=1, split_seed=3, test_per_class=20)
    result = train_network(config, other, heard, tmp_path / "run", allow_dataset_mismatch=True)
    assert [text.split(" ")[0] for text in result.dataset_mismatch] == ["has", "its", "has", "its"]
    (note,) = heard.notes
    assert all(text in note for text in result.dataset_mismatch)
    assert "split_seed 3" in note
    assert "may be test images" in note
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())
    assert recorded["dataset_mismatch"] == list(result.dataset_mismatch)
    assert recorded["digest"] == bundle.digest
    assert json.loads((tmp_path / "run" / "status.json").read_text())["digest"] == bundle.digest
    baseline = train_network(config.with_changes(policy="none"))
    assert result.test_top1 != baseline.test_top1, "the policy was at work"


def test_allowing_another_data_set_changes_nothing_for_the_same(bundle: PolicyBundle, make_train_config) -> None:
    heard, config = Heard(), make_train_config(epochs=1)
    plain = train_network(config, bundle)
    allowed = train_network(config, bundle, heard, allow_dataset_mismatch=True)
    assert allowed.dataset_mismatch == ()
    assert heard.notes == []
    state = plain.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in allowed.network.state_dict().items())


def test_other_splits_of_the_same_data_are_a_mismatch(bundle: PolicyBundle, make_train_config) -> None:
    config = make_train_config(epochs=1, split_seed=5)
    (difference,) = train_network(config, bundle, allow_dataset_mismatch=True).dataset_mismatch
    assert "fingerprint" in difference
    with pytest.raises(InputError, match="setting operation_space"):
        train_network(config.with_changes(operation_space="wide"), bundle, allow_dataset_mismatch=True)


def test_a_policy_is_not_finetuned_on_another_data_set(bundle: PolicyBundle, make_train_config) -> None:
    with pytest.raises(UsageError, match="would name a data set that its policy was not learned on"):
        train_network(make_train_config(mode="finetune"), bundle, allow_dataset_mismatch=True)


def test_images_of_other_channels_are_refused(bundle: PolicyBundle, make_train_config, monkeypatch) -> None:
    contract = bundle.manifest.input.model_copy(update={"channels": 3})
    coloured = PolicyBundle(bundle.manifest.model_copy(update={"input": contract}), bundle.tensors)
    with pytest.raises(InputError, match="its images have 1 channels, the bundle's extractor takes 3"):
        train_network(make_train_config(), coloured, allow_dataset_mismatch=True)


def test_target_may_be_larger_than_the_proxys_input(bundle: PolicyBundle, make_train_config) -> None:
    """A ViT with an image size of its own: the extractor sees the images at the proxy's size."""
    config = make_train_config(arch="test_vit", image_size=16, model_args={"img_size": 16}, epochs=1)
    assert train_network(config, bundle).weight_spread > 0


# ---- timm's networks on small images, as docs/networks.md has them


@pytest.fixture(scope="module")
def small_colour_images(tiny: Path) -> dict[str, object]:
    """Settings of one iteration over four 32x32 images."""
    per_class = dict.fromkeys(("train_per_class", "validation_per_class", "test_per_class"), 2)
    return {"dataset": f"folder:{tiny / 'tiny'}", "image_size": 32, "epochs": 1, "batch_size": 4, **per_class}


@pytest.fixture(scope="module")
def small_colour_bundle(small_colour_images: dict, make_search_config) -> PolicyBundle:
    return search_policy(make_search_config(**small_colour_images))


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("resnet18", {}),
        ("resnet18", {"image_size": 64}),
        ("resnet18", {"model_args": {"output_stride": 8}}),
        ("convnext_atto", {}),
        ("convnext_atto", {"model_args": {"patch_size": 1}}),
        ("vit_tiny_patch16_224", {"model_args": {"img_size": 32, "depth": 2}}),
        ("vit_tiny_patch16_224", {"model_args": {"img_size": 32, "patch_size": 4, "depth": 2}}),
    ],
)
def test_networks_for_large_images_take_small_ones(
    small_colour_bundle: PolicyBundle, small_colour_images: dict, make_train_config, arch: str, changes: dict
) -> None:
    result = train_network(make_train_config(arch=arch, **(small_colour_images | changes)), small_colour_bundle)
    assert 0 <= result.test_top1 <= 100


@pytest.mark.parametrize(
    ("arch", "changes", "fix"),
    [
        ("vit_tiny_patch16_224", {}, "--image-size 224 or --model-arg img_size=32"),
        ("vit_tiny_patch16_224", {"model_args": {"img_size": 64}}, "--image-size 64 or --model-arg img_size=32"),
        ("swin_tiny_patch4_window7_224", {}, "--image-size 224 or --model-arg img_size=32"),
        ("convnext_atto", {"image_size": 8}, "--image-size 224"),
    ],
)
def test_networks_that_do_not_take_the_size_say_what_to_do(
    small_colour_bundle: PolicyBundle, small_colour_images: dict, make_train_config, arch: str, changes: dict, fix: str
) -> None:
    size = changes.get("image_size", 32)
    remedy = f"use {fix}, or another network$"
    with pytest.raises(UsageError, match=f"^network .+: does not take 3 x {size} x {size} images .+; {remedy}"):
        train_network(make_train_config(arch=arch, **(small_colour_images | changes)), small_colour_bundle)


@pytest.mark.parametrize(
    ("arch", "changes", "side"),
    [
        ("resnet18", {}, 1),
        ("resnet18", {"output_stride": 8}, 4),
        ("convnext_atto", {}, 1),
        ("convnext_atto", {"patch_size": 1}, 4),
    ],
)
def test_what_is_left_of_32_pixels(arch: str, changes: dict, side: int) -> None:
    """The figures of docs/networks.md."""
    network = build_network(arch, changes, 2, 3, 0, CPU).eval()
    assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape[-2:] == (side, side)
    assert f"{side} x {side}" in (Path(__file__).parent.parent / "docs" / "networks.md").read_text(encoding="utf-8")


def test_frozen_training_rejects_where_asked(make_train_config, bundle: PolicyBundle) -> None:
    weighed, rejecting = (
        train_network(make_train_config(epochs=1, reject_below_mean=rejects), bundle).weight_spread
        for rejects in (False, True)
    )
    assert rejecting > 2 * weighed, "half of the samples or so count nothing"


def test_a_network_with_shared_tensors_is_trained_and_kept(make_train_config, tiny: Path, tmp_path: Path) -> None:
    per_class = dict.fromkeys(("train_per_class", "validation_per_class", "test_per_class"), 2)
    changes = {"dataset": f"folder:{tiny / 'tiny'}", "arch": "coat_lite_tiny", "model_args": {"img_size": 32}}
    config = make_train_config(policy="none", image_size=32, epochs=1, batch_size=4, **changes, **per_class)
    network = train_network(config, run_dir=tmp_path / "run").network
    other = build_network("coat_lite_tiny", {"img_size": 32}, 2, 3, 1, CPU)
    load_model(other, tmp_path / "run" / "network.safetensors")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in network.state_dict().items())


def test_what_cannot_be_saved_is_found_before_the_first_iteration(make_train_config, tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("cannot be saved")

    monkeypatch.setattr("mapolicy.train.check_savable", fail)
    monkeypatch.setattr("mapolicy.train.Trainer", lambda *_: pytest.fail("the training began"))
    with pytest.raises(ValueError, match="cannot be saved"):
        train_network(make_train_config(policy="none"), run_dir=tmp_path / "run")


def test_stochastic_depth_is_an_argument_of_the_network(make_train_config, bundle: PolicyBundle) -> None:
    """It changes the training, frozen and fine-tuned, and is off where accuracy is measured."""
    for mode in ("frozen", "finetune"):
        config = make_train_config(mode=mode, arch="test_convnext", image_size=32, batch_size=128)
        plain, dropped = (
            train_network(config.with_changes(epochs=1, model_args=arguments), bundle).network
            for arguments in ({}, {"drop_path_rate": 0.5})
        )
        assert any(type(module).__name__ == "DropPath" for module in dropped.modules())
        assert not torch.equal(plain.head.fc.weight, dropped.head.fc.weight)
        images = torch.randn(4, 1, 32, 32)
        assert torch.equal(dropped(images), dropped(images))
