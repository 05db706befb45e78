"""Runs that start from weights: what moves, what is recorded, and that no bundle makes anything load them."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.optim import param_groups_layer_decay

from mapolicy import PolicyBundle, search_policy, train_network
from mapolicy.errors import InputError, UsageError
from mapolicy.policy.extractor import fresh_extractor
from mapolicy.training.optim import make_optimizer, make_schedule
from mapolicy.training.setup import TrainingSetup

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if trained on colour images of 1,000 classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "pretrained.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))


def body(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_a_frozen_body_does_not_move_and_the_classifier_learns(
    mode: str, bundle: PolicyBundle, make_train_config, weights_file: Path
) -> None:
    config = make_train_config(mode=mode, weights=str(weights_file), freeze=True, epochs=1)
    start = TrainingSetup.build(config, CPU, bundle.meta_validation).network
    before, classifier = body(start), start.fc.weight.clone()
    network = train_network(config, bundle).network
    assert all(torch.equal(before[name], value) for name, value in body(network).items())
    assert not torch.equal(classifier, network.fc.weight)


def test_a_proxy_may_be_frozen(make_search_config, weights_file: Path) -> None:
    config = make_search_config(proxy="test_resnet", weights=str(weights_file), freeze=True, epochs=1)
    before = body(TrainingSetup.build(config, CPU).network)
    found = search_policy(config)
    extractor = found.build_extractor(CPU)
    assert all(torch.equal(before[name], value) for name, value in body(extractor).items())
    assert PolicyBundle.from_bytes(found.to_bytes()).digest == found.digest
    with pytest.raises(UsageError, match="frozen parameters take no virtual step"):
        config.with_changes(alpha="per-layer")


@pytest.mark.parametrize("decay_all", [True, False])
def test_rates_by_layer_are_timms(decay_all: bool, make_train_config) -> None:
    config = make_train_config(arch="test_vit", layer_decay=0.6, optimizer="adamw", decay_all=decay_all)
    network = timm.create_model("test_vit")
    optimizer = make_optimizer(config, network)
    expected = param_groups_layer_decay(
        network, config.weight_decay, network.no_weight_decay(), weight_decay_exclude_1d=not decay_all, layer_decay=0.6
    )
    schedule = make_schedule(config, optimizer, 10)
    schedule.step_update(5)
    whole = config.learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 5 / 20))).item()
    assert len(optimizer.param_groups) == len(expected) > 5
    for group, other in zip(optimizer.param_groups, expected, strict=True):
        assert [*map(id, group["params"])] == [*map(id, other["params"])]
        assert group["weight_decay"] == other["weight_decay"]
        assert group["lr"] == pytest.approx(whole * other["lr_scale"], rel=1e-6)


def test_a_run_with_rates_by_layer_resumes_to_the_same_bytes(
    make_train_config, tmp_path: Path, interrupted_after, weights_file: Path
) -> None:
    config = make_train_config(
        policy="none", weights=str(weights_file), layer_decay=0.5, optimizer="adamw", learning_rate=1e-3
    )
    train_network(config, run_dir=tmp_path / "straight")
    with interrupted_after(7):
        train_network(config, run_dir=tmp_path / "stopped")
    train_network(config, run_dir=tmp_path / "stopped", resume=True)
    first, second = (tmp_path / name / "network.safetensors" for name in ("straight", "stopped"))
    assert first.read_bytes() == second.read_bytes()


def test_a_run_goes_on_with_the_weights_it_started_from(
    make_train_config, tmp_path: Path, interrupted_after, weights_file: Path
) -> None:
    config = make_train_config(policy="none", weights=str(weights_file), epochs=1)
    with interrupted_after(2):
        train_network(config, run_dir=tmp_path / "run")
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), other)
    with pytest.raises(InputError, match=r"is of another run: weights '[0-9a-f]"):
        train_network(config.with_changes(weights=str(other)), run_dir=tmp_path / "run", resume=True)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(weights_file.read_bytes())
    train_network(config.with_changes(weights=str(moved)), run_dir=tmp_path / "run", resume=True)


def test_the_start_says_what_the_network_starts_from(make_train_config, weights_file: Path) -> None:
    config = make_train_config(policy="none", arch="test_resnet.r160_in1k")
    assert TrainingSetup.build(config, CPU).facts()["weights"] == "random; --pretrained loads those of r160_in1k"
    config = make_train_config(policy="none", weights=str(weights_file), freeze=True)
    facts = TrainingSetup.build(config, CPU).facts()
    assert facts["weights"] == f"{weights_file}; the classifier is new: the weights have 1000 classes, the data has 10"
    assert facts["network"].endswith(" of them are trained")
    assert "weights" not in TrainingSetup.build(make_train_config(policy="none"), CPU).facts()


def test_images_are_normalised_as_the_weights_were_trained(make_train_config, weights_file: Path) -> None:
    config = make_train_config(policy="none", weights=str(weights_file))
    assert TrainingSetup.build(config, CPU).pipeline.mean == (0.5,)
    data = TrainingSetup.build(config.with_changes(normalisation="data"), CPU)
    assert data.pipeline.mean == TrainingSetup.build(make_train_config(policy="none"), CPU).pipeline.mean != (0.5,)


# ---- bundles


def test_a_bundle_of_a_pretrained_proxy_needs_no_weights_but_its_own(
    make_search_config, weights_file: Path, tmp_path: Path, hub_server, make_train_config, monkeypatch
) -> None:
    hub_server.commit("timm/test_resnet.r160_in1k", {"model.safetensors": weights_file.read_bytes()})
    config = make_search_config(proxy="test_resnet.r160_in1k", pretrained=True, epochs=1)
    searched = search_policy(config)
    settings = searched.manifest.search.settings
    assert (searched.manifest.extractor.arch, settings["proxy"]) == ("test_resnet", "test_resnet")
    assert (settings["pretrained"], settings["weights_of"]) == (True, "test_resnet.r160_in1k")
    assert len(settings["weights_sha256"]) == 64
    assert "weights" not in settings
    assert searched.manifest.input.mean == (0.5,), "the extractor sees what its weights were trained on"

    hub_server.log.clear()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    searched.save(tmp_path / "bundle.safetensors")
    loaded = PolicyBundle.load(tmp_path / "bundle.safetensors")
    extractor = loaded.build_extractor(CPU).state_dict()
    assert all(torch.equal(extractor[name], value) for name, value in loaded.tensors_under("extractor.").items())
    train_network(make_train_config(epochs=1), loaded)
    assert hub_server.log == []


def test_a_bundles_settings_load_nothing(bundle: PolicyBundle, make_train_config, no_hub: None) -> None:
    """A bundle is untrusted: what it says of weights is for the reader."""
    search = bundle.manifest.search
    said = {**search.settings, "pretrained": True, "weights_of": "resnet18.a1_in1k", "freeze": True}
    manifest = bundle.manifest.model_copy(update={"search": search.model_copy(update={"settings": said})})
    other = PolicyBundle(manifest, bundle.tensors)
    assert not {"pretrained", "weights", "freeze", "normalisation"} & other.data_settings().keys()
    network = train_network(make_train_config(epochs=1), other).network
    plain = train_network(make_train_config(epochs=1), bundle).network
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "hf-hub:timm/resnet18", "local-dir:."])
def test_a_bundles_extractor_is_no_name_of_weights(name: str, bundle: PolicyBundle, no_hub: None) -> None:
    part = bundle.manifest.extractor.model_dump() | {"arch": name}
    with pytest.raises(ValueError, match="a timm name"):
        type(bundle.manifest.extractor)(**part)
    fresh_extractor(bundle.manifest.extractor, 10, 1, CPU, "bundle")


def test_a_bundle_may_not_name_a_file_of_weights(bundle: PolicyBundle) -> None:
    search = bundle.manifest.search
    with pytest.raises(ValueError, match="weights"):
        type(search)(settings={**search.settings, "weights": "secret"})
