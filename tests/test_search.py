"""The search end to end, on digits."""

import json
import math
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from mapolicy import PolicyBundle, TrainConfig, search_policy, train_network
from mapolicy.config import RunConfig
from mapolicy.errors import InputError, TrainingError, UsageError
from mapolicy.models.factory import build_network
from mapolicy.runtime.random import seed_for
from mapolicy.training.callbacks import Reporter
from mapolicy.training.checkpoint import load_checkpoint
from mapolicy.transforms.space import OPERATION_NAMES
from mapolicy.transforms.transformation import Transformation


class Log(Reporter):
    def __init__(self) -> None:
        self.records, self.evaluations, self.notes, self.ended, self.result = [], [], [], 0, {}

    def on_log(self, record) -> None:
        self.records.append(record)

    def on_evaluate(self, record) -> None:
        self.evaluations.append(record)

    def on_note(self, text) -> None:
        self.notes.append(text)

    def on_complete(self, result) -> None:
        self.result = result

    def on_finish(self) -> None:
        self.ended += 1


ALIGNMENT = {"sampler": "alignment", "weighting": "equal", "meta_every": 2, "verify": False}


@pytest.fixture(scope="module")
def aligned(make_search_config) -> PolicyBundle:
    """Searched with the alignment sampler."""
    return search_policy(make_search_config(**ALIGNMENT))


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Two classes of noise of different colours, 24 images each."""
    generator = torch.Generator().manual_seed(0)
    for label, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "squares" / label).mkdir(parents=True)
        for number in range(24):
            pixels = torch.randint(0, 100, (20, 18, 3), generator=generator, dtype=torch.uint8)
            pixels[:, :, channel] += 120
            Image.fromarray(pixels.numpy()).save(tmp_path / "squares" / label / f"{number}.png")
    return tmp_path / "squares"


def test_same_seed_same_bytes(bundle: PolicyBundle, make_search_config) -> None:
    again = search_policy(make_search_config())
    assert again.to_bytes() == bundle.to_bytes()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"epsilon": 0.2}, {"sampler_temperature": 0.5}, {"policy_learning_rate": 0.02}]
)
def test_other_settings_other_policy(bundle: PolicyBundle, make_search_config, change: dict) -> None:
    other = search_policy(make_search_config(**change))
    assert not torch.equal(other.probabilities, bundle.probabilities)
    assert other.digest != bundle.digest


def test_the_policy_moves_and_stays_a_policy(bundle: PolicyBundle) -> None:
    probabilities = bundle.probabilities.double()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-6)
    assert float(probabilities.min()) >= 0.1 / 196 - 1e-9
    assert float((probabilities * 196 - 1).abs().max()) > 0.01
    assert float(bundle.alpha) > 0
    assert float(bundle.alpha) != pytest.approx(0.1)
    assert bundle.build_policy().output.weight.detach().abs().max() > 0


def test_the_bundle_says_what_was_done(bundle: PolicyBundle, make_search_config) -> None:
    manifest = bundle.manifest
    assert manifest.dataset.name == "digits"
    assert manifest.dataset.classes == tuple("0123456789")
    assert manifest.extractor.arch == "wrn10_1"
    assert manifest.extractor.feature_width == 64
    settings = make_search_config().portable()
    assert manifest.search.settings == settings
    assert manifest.run.iterations == 2 * (manifest.dataset.counts.train // 64)
    assert 10 < manifest.results["validation_top1"] <= 100
    assert len(bundle.meta_validation) == manifest.dataset.counts.meta_validation


def test_the_test_split_is_not_opened(make_search_config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self) -> None:
        raise AssertionError("the search opened the test split")

    monkeypatch.setattr("mapolicy.data.splits.DataSplits.test", fail)
    search_policy(make_search_config(epochs=1))


def test_run_folder_has_configuration_log_and_result(make_search_config, tmp_path) -> None:
    log = Log()
    config = make_search_config(batch_size=32)
    searched = search_policy(config, log, tmp_path / "run")
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.safetensors",
        "config.toml",
        "data.json",
        "metrics.csv",
        "metrics.jsonl",
        "network.safetensors",
        "result.json",
        "status.json",
    ]
    assert tomllib.loads((folder / "config.toml").read_text()) == config.to_mapping()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    iterations = [line for line in lines if "loss" in line]
    assert [line["iteration"] for line in iterations] == list(range(1, 21))
    assert {"loss", "validation_loss", "alpha", "entropy", "weight_spread", "learning_rate"} <= set(iterations[0])
    assert [line["validation_top1"] for line in lines if "validation_top1" in line] == [
        record["validation_top1"] for record in log.evaluations
    ]
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    result = json.loads((folder / "result.json").read_text())
    assert result["digest"] == searched.digest
    assert result["cost_ratio"] > 1
    assert log.ended == 1


@pytest.mark.parametrize("iteration", [1, 3, 5, 10])
def test_interrupted_and_resumed_gives_the_same_bytes(
    bundle: PolicyBundle, make_search_config, tmp_path, interrupted_after, iteration: int
) -> None:
    """Stopped in the first iteration, in mid-epoch, at an epoch's end and at the very end."""
    config = make_search_config()
    with interrupted_after(iteration):
        search_policy(config, run_dir=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
    log = Log()
    resumed = search_policy(config, log, tmp_path / "run", resume=True)
    assert log.notes == [f"goes on after iteration {iteration}"]
    assert resumed.to_bytes() == bundle.to_bytes()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [(record["iteration"], "loss" in record) for record in map(json.loads, lines)]
    expected = [(number, True) for number in range(1, 11)]
    assert logged == [*expected[:5], (5, False), *expected[5:], (10, False)], "no line twice, none missing"


@pytest.mark.parametrize("iteration", [1, 6])
def test_an_interrupted_search_with_the_alignment_sampler_gives_the_same_bytes(
    aligned: PolicyBundle, make_search_config, tmp_path, interrupted_after, iteration: int
) -> None:
    """Iteration 1 learned, 6 did not; `meta_every` is 2."""
    with interrupted_after(iteration):
        search_policy(make_search_config(**ALIGNMENT), run_dir=tmp_path / "run")
    resumed = search_policy(make_search_config(**ALIGNMENT), run_dir=tmp_path / "run", resume=True)
    assert resumed.to_bytes() == aligned.to_bytes()
    assert aligned.log_levels is not None
    assert len(aligned.log_levels) == 1
    assert aligned.log_levels.abs().max() > 1e-3, "the levels have moved"


def test_a_bundle_keeps_the_course_of_the_search_where_that_is_asked_for(
    aligned: PolicyBundle, make_search_config, make_train_config
) -> None:
    whole = search_policy(make_search_config(**ALIGNMENT | {"level_course": True}))
    assert whole.log_levels is not None
    assert aligned.log_levels is not None
    stages = len(whole.log_levels)
    assert stages > 1
    torch.testing.assert_close(whole.log_levels[stages // 2 :].mean(0), aligned.log_levels[0])
    for course in (False, True):
        refined = train_network(make_train_config(epochs=1, mode="finetune", level_course=course), whole).refined
        assert refined is not None
        assert refined.log_levels is not None
        assert (len(refined.log_levels) > 1) == course


@pytest.mark.parametrize("seen", ["class", "features"])
def test_draws_that_see_images_go_through_search_training_and_resume(
    make_search_config, make_train_config, tmp_path, interrupted_after, seen: str
) -> None:
    config = make_search_config(**ALIGNMENT | {"sampler_input": seen, "meta_every": 1})
    whole = search_policy(config)
    with interrupted_after(6):
        search_policy(config, run_dir=tmp_path / "run")
    assert search_policy(config, run_dir=tmp_path / "run", resume=True).to_bytes() == whole.to_bytes()
    levels, effects = whole.manifest.levels, whole.sample_effects
    assert levels is not None
    assert effects is not None
    assert (levels.input, len(effects.table)) == (seen, levels.context)
    assert (effects.features is not None) == (seen == "features")
    again = PolicyBundle.from_bytes(whole.to_bytes())
    trained = train_network(make_train_config(epochs=1), again)
    assert trained.digest == whole.digest
    refined = train_network(make_train_config(epochs=1, mode="finetune"), again).refined
    assert refined is not None
    assert refined.manifest.levels is not None
    assert refined.manifest.levels.input == seen


def test_only_a_search_with_levels_writes_a_later_format(bundle: PolicyBundle, aligned: PolicyBundle) -> None:
    """A bundle of the paper's sampler is read by every version, and its bytes say nothing of levels or checks."""
    content = bundle.to_bytes()
    assert (bundle.manifest.format, aligned.manifest.format) == (1, 2)
    assert b"levels" not in content
    assert b'"verification"' not in content
    assert b"levels" in aligned.to_bytes()


@pytest.mark.parametrize("dropped", ["optimizer.policy.", "optimizer.network.", "module.rate.", "sampler."])
def test_every_part_of_the_state_matters(
    bundle: PolicyBundle, make_search_config, tmp_path, monkeypatch, interrupted_after, dropped: str
) -> None:
    """The control: a resume that forgets a part of the state does not give the same bytes."""
    config = make_search_config()
    with interrupted_after(7):
        search_policy(config, run_dir=tmp_path / "run")

    def forgetful(path):
        tensors, facts = load_checkpoint(path)
        return {
            name: torch.zeros_like(tensor) if name.startswith(dropped) else tensor for name, tensor in tensors.items()
        }, facts

    monkeypatch.setattr("mapolicy.training.run_folder.load_checkpoint", forgetful)
    try:
        resumed = search_policy(config, run_dir=tmp_path / "run", resume=True)
    except (TrainingError, RuntimeError):
        return
    assert resumed.to_bytes() != bundle.to_bytes()


def test_resume_with_other_settings_lists_each_difference(make_search_config, tmp_path) -> None:
    search_policy(make_search_config(epochs=1), run_dir=tmp_path / "run")
    with pytest.raises(InputError, match=r"seed 0 -> 3") as caught:
        search_policy(make_search_config(epochs=1, seed=3, epsilon=0.3), run_dir=tmp_path / "run", resume=True)
    assert "epsilon 0.1 -> 0.3" in str(caught.value)


def test_a_run_from_before_a_setting_existed_goes_on(make_search_config, tmp_path, monkeypatch) -> None:
    """It did what the setting's default does, and is another run than one with another value."""
    config = make_search_config(epochs=1)
    search_policy(config, run_dir=tmp_path / "run")

    def older(path):
        tensors, facts = load_checkpoint(path)
        del facts["identity"]["sampler_temperature"]
        return tensors, facts

    monkeypatch.setattr("mapolicy.training.run_folder.load_checkpoint", older)
    with pytest.raises(InputError, match=r"sampler_temperature 1.0 -> 0.5"):
        search_policy(config.with_changes(sampler_temperature=0.5), run_dir=tmp_path / "run", resume=True)
    search_policy(config, run_dir=tmp_path / "run", resume=True)


def test_resume_with_other_images_is_refused(make_search_config, squares: Path, tmp_path: Path) -> None:
    config = make_search_config(dataset=f"folder:{squares}", image_size=12, batch_size=8, epochs=1)
    search_policy(config, run_dir=tmp_path / "run")
    shutil.move(squares, tmp_path / "elsewhere" / "squares")
    moved = config.with_changes(dataset=f"folder:{tmp_path / 'elsewhere' / 'squares'}")
    search_policy(moved, run_dir=tmp_path / "run", resume=True)  # the same images in another place
    red = tmp_path / "elsewhere" / "squares" / "red"
    for path in red.iterdir():
        Image.new("RGB", (20, 18)).save(path)
    with pytest.raises(InputError, match=r"is of another run: images '"):
        search_policy(moved, run_dir=tmp_path / "run", resume=True)


def test_resuming_a_finished_run_keeps_its_figures(make_search_config, tmp_path: Path) -> None:
    config = make_search_config(batch_size=32, epochs=1)
    search_policy(config, run_dir=tmp_path / "run")
    first = json.loads((tmp_path / "run" / "result.json").read_text())
    search_policy(config, run_dir=tmp_path / "run", resume=True)
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert again["cost_ratio"] == first["cost_ratio"] is not None
    assert again["seconds"] >= 0.9 * first["seconds"]
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_a_last_update_that_diverges_is_seen(make_search_config, tmp_path: Path, monkeypatch) -> None:
    """The last loss was finite, what it led to is not."""
    from mapolicy.bilevel import bilevel_step as bilevel

    step = bilevel.weighted_step

    def diverging(losses, weights, network, *rest):
        loss = step(losses, weights, network, *rest)
        next(network.parameters()).data[0] = math.inf
        return loss

    monkeypatch.setattr(bilevel, "weighted_step", diverging)
    with pytest.raises(TrainingError, match="the update is not finite; no checkpoint"):
        search_policy(make_search_config(batch_size=320, epochs=1), run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_folder_with_a_run_is_refused(make_search_config, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("")
    with pytest.raises(UsageError, match="holds something, which is no run's"):
        search_policy(make_search_config(), run_dir=tmp_path / "run")
    (tmp_path / "run" / "something").rename(tmp_path / "run" / "metrics.jsonl")
    with pytest.raises(UsageError, match="holds a run"):
        search_policy(make_search_config(), run_dir=tmp_path / "run")


def test_divergence_stops_and_names_the_iteration_and_the_last_good_state(make_search_config, tmp_path) -> None:
    config = make_search_config(learning_rate=1e18, clip_norm=0.0, checkpoint_minutes=0.0)
    with pytest.raises(TrainingError, match=r"iteration \d+: the loss is (nan|inf); the last good state is") as caught:
        search_policy(config, run_dir=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    tensors, facts = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert f"iteration {facts['iteration'] + 1}:" in str(caught.value)
    assert "checkpoint.safetensors" in str(caught.value)
    assert all(math.isfinite(float(t.sum())) for name, t in tensors.items() if name.startswith("module.policy"))


@pytest.mark.parametrize(
    "change",
    [
        {"copies": 4},
        {"alpha": "per-layer"},
        {"policy_input": "features"},
        {"policy_input": "embedding"},
        {"meta_every": 2},
        {"meta_fraction": 0.5},
        {"simultaneous": True},
        {"reject_below_mean": True},
        {"low_memory": True},
        {"extractor": "own"},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_options_end_in_a_bundle_that_loads(make_search_config, change: dict) -> None:
    searched = search_policy(make_search_config(epochs=1, batch_size=128, **change))
    loaded = PolicyBundle.from_bytes(searched.to_bytes())
    assert loaded.digest == searched.digest
    (name,) = change
    assert loaded.manifest.search.settings[name] == change[name]
    if name == "alpha":
        assert loaded.alpha.shape == (len(list(loaded.build_extractor(torch.device("cpu")).parameters())),)


def test_an_own_extractor_is_what_the_bundle_holds(make_search_config) -> None:
    """Not the proxy: another start, trained by Eq. 3 alone, so that its last layer has never moved."""
    config = make_search_config(epochs=1, extractor="own", policy_learning_rate=1e-2)
    searched = search_policy(config)
    start = build_network("wrn10_1", {}, 10, 1, seed_for(config.seed, "search", "extractor", 0), torch.device("cpu"))
    extractor = searched.build_extractor(torch.device("cpu"))
    assert torch.equal(extractor.fc.weight, start.fc.weight)
    assert not torch.equal(extractor.conv1.weight, start.conv1.weight)
    assert int(extractor.bn.num_batches_tracked) > 0


def test_theorem_1_fixes_alpha(make_search_config) -> None:
    config = make_search_config(schedule="theorem1", alpha_initial=2.0, alpha_learning_rate=0.0, epochs=2)
    searched = search_policy(config)
    assert searched.alpha.item() == pytest.approx(2.0 * math.log(10) / 10)


def test_a_search_that_rarely_learns_says_the_last_validation_loss(make_search_config) -> None:
    log = Log()
    search_policy(make_search_config(meta_every=4, epochs=2), log)
    losses = [record["validation_loss"] for record in log.records]
    assert len(losses) == 10
    assert len(set(losses)) == 3


def test_a_proxy_that_no_bundle_may_hold_is_refused_at_the_start(make_search_config) -> None:
    with pytest.raises((InputError, UsageError), match="global_pool"):
        search_policy(make_search_config(proxy="test_resnet", model_args={"global_pool": "max"}))


def test_a_transformer_can_search(make_search_config) -> None:
    config = make_search_config(proxy="test_vit", model_args={"img_size": 8, "patch_size": 4}, epochs=1, batch_size=128)
    assert search_policy(config).manifest.extractor.model_args == {"img_size": 8, "patch_size": 4}


@pytest.mark.parametrize("extractor", ["shared", "own"])
def test_a_network_without_a_true_gradient_can_search(make_search_config, tmp_path: Path, extractor: str) -> None:
    log = Log()
    small = {"proxy": "pyramidnet110_a48", "model_args": {"depth": 8}}
    config = make_search_config(epochs=1, batch_size=128, extractor=extractor, **small)
    searched = search_policy(config, log, tmp_path / "run")
    assert sum("noise at its mean" in note for note in log.notes) == 1
    assert log.result["step"].endswith("hypergradient with the noise at its mean")
    loaded = PolicyBundle.from_bytes(searched.to_bytes())
    assert loaded.manifest.search.settings["hypergradient_noise"] == "mean"
    assert extractor == "own" or loaded.to_bytes() == search_policy(config).to_bytes(), "the noise is the seed's"


def test_other_networks_say_nothing_of_noise(bundle: PolicyBundle) -> None:
    assert "hypergradient_noise" not in bundle.manifest.search.settings


@pytest.mark.parametrize("base_augmentation", ["flip_crop", "random_resized_crop"])
def test_the_number_of_loader_workers_does_not_matter(make_search_config, squares: Path, base_augmentation) -> None:
    """Streamed from files: the same bytes with 0, 1 and 2 worker processes."""
    config = make_search_config(
        dataset=f"folder:{squares}",
        image_size=12,
        batch_size=8,
        base_augmentation=base_augmentation,
        memory_limit_gib=0.0,
        workers=0,
    )
    alone = search_policy(config).to_bytes()
    for workers in (1, 2):
        assert search_policy(config.with_changes(workers=workers)).to_bytes() == alone, workers


def test_a_streamed_search_equals_a_resident_one(make_search_config, squares: Path) -> None:
    """But for mean and deviation, which only a resident data set has exactly."""
    config = make_search_config(dataset=f"folder:{squares}", image_size=12, batch_size=8, workers=0)
    resident, streamed = search_policy(config), search_policy(config.with_changes(memory_limit_gib=0.0))
    assert resident.manifest.dataset == streamed.manifest.dataset
    assert resident.manifest.input.mean != streamed.manifest.input.mean
    assert torch.equal(resident.meta_validation, streamed.meta_validation)


def test_a_policy_that_does_not_learn_is_uniform(make_search_config, make_train_config, monkeypatch) -> None:
    """The search is then plain training on uniform transformations, bit for bit: the other passes leave no trace.

    Every raw output stays 1/2, and that, not its share of the batch, is what the sampler averages.
    """
    config = make_search_config(epochs=1, policy_learning_rate=0.0, alpha_learning_rate=0.0, alpha_initial=0.25)
    searched = search_policy(config)
    assert torch.equal(searched.means, torch.full((14, 14), 0.5))
    torch.testing.assert_close(searched.probabilities, torch.full((14, 14), 1 / 196))
    assert searched.alpha.item() == pytest.approx(0.25)

    shared = {field.name: getattr(config, field.name) for field in fields(RunConfig)}
    plain = make_train_config(**shared, arch=config.proxy, policy="uniform")
    monkeypatch.setattr(TrainConfig, "stage", "search")  # draws depend on the stage
    trained = train_network(plain).network.state_dict()
    kept = searched.build_extractor(torch.device("cpu")).state_dict()
    assert list(kept) == list(trained)
    for name, tensor in kept.items():
        assert torch.equal(tensor, trained[name]), name


PLANTED = OPERATION_NAMES.index("ShearX")


def plant(monkeypatch: pytest.MonkeyPatch, destroys: Callable[[Transformation], torch.Tensor]) -> None:
    """Where `destroys` says so, a transformation's image is another sample's, so that its label is wrong."""
    original = Transformation.apply

    def apply(self: Transformation, *arguments) -> torch.Tensor:
        images = original(self, *arguments)
        wrong = destroys(self)[:, None, None, None]
        return torch.where(wrong, images.roll(1, dims=0), images)

    monkeypatch.setattr(Transformation, "apply", apply)


def with_planted(transformation: Transformation) -> torch.Tensor:
    return (transformation.first == PLANTED) | (transformation.second == PLANTED)


def marginals(table: torch.Tensor) -> list[tuple[float, float]]:
    """Of the planted operation and of the others, as first and as second operation: means over its pairs."""
    others = [number for number in range(len(OPERATION_NAMES)) if number != PLANTED]
    return [(float(side[PLANTED].mean()), float(side[others].mean())) for side in (table, table.T)]


def test_an_operation_that_destroys_labels_is_found_out(make_search_config, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, with_planted)
    searched = search_policy(make_search_config(epochs=8, batch_size=128, train_per_class=0))
    for probability, other in marginals(searched.probabilities):
        assert probability < 0.75 * other
    for weight, other in marginals(searched.means):
        assert weight < 0.75 * other
    assert searched.manifest.results["signal_to_noise_low"] > 0


def test_the_one_operation_that_keeps_labels_is_found_out(make_search_config, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda transformation: ~with_planted(transformation))
    searched = search_policy(make_search_config(epochs=8, batch_size=128, train_per_class=0))
    for probability, other in marginals(searched.probabilities):
        assert probability > 1.5 * other
    for weight, other in marginals(searched.means):
        assert weight > 1.5 * other


def test_meta_weight_net_end_to_end(make_search_config, make_train_config, tmp_path: Path) -> None:
    """The bundle holds a policy of the loss: training fine-tunes it or leaves the weights out, and says so."""
    searched = search_policy(make_search_config(epochs=1, batch_size=128, policy_input="loss"))
    searched.save(tmp_path / "a")
    loaded = PolicyBundle.load(tmp_path / "a")
    assert loaded.manifest.policy.input == "loss"
    assert not loaded.manifest.weighs_images
    with pytest.raises(UsageError, match=r"its policy weighs a sample by its training loss.*--policy sampler-only"):
        train_network(make_train_config(epochs=1, batch_size=128), loaded)
    train_network(make_train_config(epochs=1, batch_size=128, policy="sampler-only"), loaded)
    refined = train_network(make_train_config(epochs=1, batch_size=128, mode="finetune"), loaded).refined
    assert refined is not None
    assert refined.manifest.policy.input == "loss"


def test_reweighting_end_to_end(make_search_config, make_train_config) -> None:
    """Weights of Ren et al. end with the search: what is left are its draws, with equal weights."""
    config = make_search_config(epochs=1, batch_size=128, weighting="reweight", sampler="alignment")
    log = Log()
    searched = search_policy(config, log)
    assert searched.manifest.equal_weights
    assert log.records[-1]["weight_spread"] > 0.1
    found = train_network(make_train_config(epochs=1, batch_size=128), searched)
    assert found.weight_spread == pytest.approx(0, abs=1e-6)


def test_an_adversarial_search_takes_no_hypergradient(
    make_search_config, make_train_config, tmp_path: Path, interrupted_after
) -> None:
    large = {"train_per_class": 0, "batch_size": 256}  # so that one level is the likeliest all along
    config = make_search_config(**large, copies=4, sampler="adversarial", weighting="equal")
    log = Log()
    searched = search_policy(config, log)
    assert "validation_loss" not in log.records[-1]
    assert searched.log_levels is not None
    assert float(searched.log_levels.min()) < 0 == float(searched.log_levels.max())
    assert 0 < searched.manifest.results["level_entropy"] <= 1
    loaded = PolicyBundle.from_bytes(searched.to_bytes())
    train_network(make_train_config(**large, epochs=1), loaded)
    refined = train_network(make_train_config(**large, epochs=1, mode="finetune"), loaded).refined
    assert refined is not None
    assert refined.log_levels is not None
    with interrupted_after(3):
        search_policy(config, run_dir=tmp_path / "run")
    assert search_policy(config, run_dir=tmp_path / "run", resume=True).digest == searched.digest
