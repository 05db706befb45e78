"""A comparison end to end, on digits: what its runs share, what resume keeps, what is rejected."""

import json
import statistics
from pathlib import Path

import pytest
import torch

from mapolicy import Comparison, PolicyBundle, TrainConfig, compare_policies, search_policy, train_network
from mapolicy.compare.checks import baselines
from mapolicy.compare.process_pool import gpu_environments
from mapolicy.compare.stats import PROXY
from mapolicy.data.splits import load_splits
from mapolicy.errors import InputError, TrainingError, UsageError
from mapolicy.inference.network_file import read_network_file
from mapolicy.policy.import_policy import import_policy
from mapolicy.runtime.random import generator
from mapolicy.training.callbacks import Reporter
from mapolicy.training.iteration import BilevelIteration, WeightedIteration

CPU = torch.device("cpu")
LISTED = import_policy("autoaugment-svhn")
LISTED_NAME = f"dataset-level-{LISTED.digest[:12]}"
SMALL = {"train_per_class": 13.0, "validation_per_class": 5.0, "batch_size": 64, "epochs": 1}  # two iterations


class Messages(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.runs: list[str] = []
        self.done: list[int] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_compare(self, done: int, runs: int, text: str, seconds_left: float) -> None:
        assert seconds_left >= 0
        self.runs.append(text)
        self.done.append(done)


@pytest.fixture
def config(make_train_config) -> TrainConfig:
    return make_train_config(**SMALL)


@pytest.fixture(scope="module")
def bundle(make_search_config) -> PolicyBundle:
    return search_policy(make_search_config(**SMALL | {"epochs": 2}))


@pytest.fixture(scope="module")
def other_bundle(make_search_config) -> PolicyBundle:
    """Of the same data, split otherwise."""
    return search_policy(make_search_config(**SMALL, split_seed=1, seed=4))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations of all trainings, in order."""
    seen: list[TrainConfig] = []

    def train(config, *arguments, **options):
        seen.append(config)
        return train_network(config, *arguments, **options)

    monkeypatch.setattr("mapolicy.compare.run_job.train_network", train)
    return seen


def figures(comparison: Comparison) -> dict[tuple, float]:
    return {(r.arch, r.policy, r.mode, r.seed, r.bundle): r.test_top1 for r in comparison.rows}


def test_a_row_is_an_ordinary_training(bundle: PolicyBundle, config: TrainConfig, tmp_path: Path) -> None:
    messages = Messages()
    against = ("uniform", "sampler-only")
    compared = compare_policies(
        [bundle], [config], tmp_path / "run", against, ("frozen", "finetune"), seeds=2, reporter=messages
    )
    assert [(row.policy, row.mode, row.seed) for row in compared.rows] == [
        (policy, mode, seed)
        for seed in (0, 1)
        for policy, mode in (("learned", "frozen"), ("learned", "finetune"), ("uniform", None), ("sampler-only", None))
    ]
    assert "trainings 8: 1 network x 4 policies x 2 seeds" in messages.notes, "too few iterations to measure"
    assert len(messages.runs) == 8
    assert compared.failed == {}
    for row in compared.rows:
        if row.seed == 1:
            own = config.with_changes(policy=row.policy, mode=row.mode or "frozen", seed=1)
            alone = train_network(own, bundle)
            assert (row.test_top1, row.test_top5) == (alone.test_top1, alone.test_top5)
    label = {"finetune": "learned-finetune"}
    for row in compared.rows:
        folder = tmp_path / "run" / row.arch / label.get(row.mode, row.policy) / f"{bundle.digest[:12]}-seed{row.seed}"
        result = json.loads((folder / "result.json").read_text())
        assert (result["test_top1"], result["seconds"], result["digest"]) == (row.test_top1, row.seconds, bundle.digest)
        assert result["test_images"] == row.test_images == 269
        kept = read_network_file(folder).config
        assert (kept.architecture, kept.mapolicy.bundle) == (row.arch, bundle.digest)
    means = {(e.policy, e.mode): e.test_top1 for e in compared.summary}
    for key, mean in means.items():
        assert mean == pytest.approx(statistics.mean(r.test_top1 for r in compared.rows if (r.policy, r.mode) == key))
    document = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert document == json.loads(json.dumps(compared.document()))
    assert document["settings"]["test_resnet"]["epochs"] == 1
    (about,) = document["bundles"]
    assert about["search"] == bundle.manifest.search.settings, "what the bundles of two comparisons differ in"
    assert document["hardware"]["cpu"]
    assert document["versions"]["torch"]


def test_runs_of_a_seed_share_order_images_and_initial_weights(
    bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def noting(original):
        def call(self, step, batch, held_out):
            if step == 0:
                weights = torch.cat([p.detach().flatten() for p in self.setup.network.parameters()]).clone()
                starts.append((self.setup.config.seed, batch[0].clone(), batch[1].clone(), weights))
            return original(self, step, batch, held_out)

        return call

    for kind in (WeightedIteration, BilevelIteration):
        monkeypatch.setattr(kind, "__call__", noting(kind.__call__))
    compare_policies([bundle, LISTED], [config], tmp_path / "run", baselines(), ("frozen", "finetune"), seeds=2)
    assert len(starts) == 2 * (len(baselines()) + 3)
    first = {}
    for seed, *start in starts:
        reference = first.setdefault(seed, start)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(start, reference, strict=True))
    assert not torch.equal(first[0][1], first[1][1]), "another seed, another order"
    assert not torch.equal(first[0][2], first[1][2])
    # The order is the one that the seed's own stream gives.
    split = load_splits(config, CPU, "train", bundle.meta_validation).train
    order = torch.randperm(len(split), generator=generator(1, "train", "order", 0))[: config.batch_size]
    ((images, labels),) = split.batches([(0, order)])
    assert torch.equal(first[1][0], images)
    assert torch.equal(first[1][1], labels)


def test_resume_keeps_finished_runs_and_continues_the_others(
    bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, trained: list, interrupted_after
) -> None:
    config, messages = config.with_changes(epochs=2), Messages()
    whole = compare_policies([bundle], [config], tmp_path / "whole", ("none", "uniform"))
    trained.clear()
    once = tmp_path / "run"
    compare_policies([bundle], [config], once, ("none",))
    with interrupted_after(3):
        compare_policies([bundle], [config], once, ("none", "uniform"), resume=True)
    trained.clear()
    resumed = compare_policies([bundle], [config], once, ("none", "uniform"), reporter=messages, resume=True)
    assert [run.policy for run in trained] == ["uniform"]
    assert any("goes on after iteration 3" in text for text in messages.notes)
    assert "2 of 3 runs were finished before" in messages.notes
    assert messages.done == [3]
    assert figures(resumed) == figures(whole)
    trained.clear()
    assert figures(compare_policies([bundle], [config], once, ("none",), resume=True)).items() <= figures(whole).items()
    assert trained == []


def test_runs_from_before_a_setting_existed_are_kept(
    bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, trained: list
) -> None:
    compare_policies([bundle], [config], tmp_path / "run", ("none",))
    for path in (tmp_path / "run").rglob("config.toml"):
        text = path.read_text()
        assert "sampler_temperature = 1.0" in text
        path.write_text(text.replace("sampler_temperature = 1.0\n", ""))
    trained.clear()
    compare_policies([bundle], [config], tmp_path / "run", ("none",), resume=True)
    assert trained == []
    changed = config.with_changes(sampler_temperature=0.5)
    with pytest.raises(InputError, match=r"sampler_temperature 1.0 -> 0.5"):
        compare_policies([bundle], [changed], tmp_path / "run", ("none",), resume=True)


def test_the_folder_of_another_comparison_is_rejected_and_left_unchanged(
    bundle: PolicyBundle, other_bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, trained: list
) -> None:
    folder = tmp_path / "run"
    compare_policies([bundle], [config], folder, ("none",))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    trained.clear()
    with pytest.raises(UsageError, match="holds a comparison; use --resume, --force"):
        compare_policies([bundle], [config], folder, ("none",))
    slower = config.with_changes(learning_rate=0.05, epochs=3)
    differences = "epochs 1 -> 3, learning_rate 0.1 -> 0.05; undo"
    with pytest.raises(InputError, match=f"belongs to another comparison: {differences}"):
        compare_policies([bundle], [slower], folder, ("none",), resume=True)
    other = config.with_changes(split_seed=1)
    with pytest.raises(InputError, match=f"bundle {bundle.digest[:12]} -> {other_bundle.digest[:12]}"):
        compare_policies([other_bundle], [other], folder, ("none",), resume=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "cat.jpg").write_bytes(b"")
    for flags in ({"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}, {}):
        with pytest.raises(UsageError, match=r"holds cat\.jpg, which is no comparison's; use another --run-dir"):
            compare_policies([bundle], [config], tmp_path / "elsewhere", ("none",), **flags)
    assert trained == []
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    compare_policies([bundle], [config], folder, ("none",), overwrite=True)
    assert len(trained) == 2


def test_several_bundles_each_with_its_split(
    bundle: PolicyBundle, other_bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, trained: list
) -> None:
    bundles = [bundle, other_bundle]
    compared = compare_policies(bundles, [config], tmp_path / "run", ("uniform",), seeds=2)
    assert [run.split_seed for run in trained] == [0, 0, 1, 1] * 2
    learned, _ = compared.summary
    assert (learned.unit, learned.n, learned.runs) == ("bundle", 2, 4)
    accuracy = figures(compared)
    gains = [
        statistics.mean(
            accuracy["test_resnet", "learned", "frozen", seed, b.digest[:12]]
            - accuracy["test_resnet", "uniform", None, seed, b.digest[:12]]
            for seed in (0, 1)
        )
        for b in bundles
    ]
    assert learned.versus_uniform.mean == pytest.approx(statistics.mean(gains))
    half = 12.7062 * statistics.stdev(gains) / 2**0.5
    assert learned.versus_uniform.half_width == pytest.approx(half, rel=1e-4)
    assert compared.notes == []


def test_a_dataset_level_policy_beside_searched_ones(
    bundle: PolicyBundle, other_bundle: PolicyBundle, config: TrainConfig, tmp_path: Path
) -> None:
    compared = compare_policies([LISTED, bundle, other_bundle], [config], tmp_path / "run", ("uniform",))
    assert [(row.policy, row.bundle) for row in compared.rows] == [
        (policy, searched.digest[:12])
        for searched in (bundle, other_bundle)
        for policy in ("learned", LISTED_NAME, "uniform")
    ]
    own = config.with_changes(policy="learned", split_seed=1)
    alone = train_network(own, LISTED, split_of=other_bundle)
    assert figures(compared)["test_resnet", LISTED_NAME, None, 0, other_bundle.digest[:12]] == alone.test_top1
    entry = next(entry for entry in compared.summary if entry.policy == LISTED_NAME)
    assert (entry.unit, entry.n, entry.versus_uniform.against) == ("bundle", 2, "uniform")
    result = json.loads(
        (tmp_path / "run" / "test_resnet" / LISTED_NAME / f"{bundle.digest[:12]}-seed0" / "result.json").read_text()
    )
    assert result["digest"] == LISTED.digest
    assert compared.document()["bundles"][0]["source"] == LISTED.manifest.source
    data = bundle.manifest.dataset.model_copy(update={"fingerprint": "0" * 64})
    altered = PolicyBundle(bundle.manifest.model_copy(update={"dataset": data}), bundle.tensors)
    with pytest.raises(InputError, match="its images are not those of the bundle's"):
        train_network(config, LISTED, split_of=altered)


def test_dataset_level_policies_alone(config: TrainConfig, tmp_path: Path, trained: list) -> None:
    other = import_policy("randaugment:1,9")
    options = {"against": ("none", "uniform"), "seeds": 2}
    compared = compare_policies([LISTED, other], [config], tmp_path / "run", **options)
    assert {row.bundle for row in compared.rows} == {"split0"}
    assert {(entry.policy, entry.unit, entry.n) for entry in compared.summary} == {
        (policy, "seed", 2) for policy in (LISTED_NAME, f"dataset-level-{other.digest[:12]}", "none", "uniform")
    }
    alone = train_network(config.with_changes(policy="none", seed=1))
    assert figures(compared)["test_resnet", "none", None, 1, "split0"] == alone.test_top1
    trained.clear()
    again = compare_policies([LISTED, other], [config], tmp_path / "run", **options, resume=True)
    assert (figures(again), trained) == (figures(compared), [])
    with pytest.raises(InputError, match="dataset 'digits' -> 'cifar10'"):
        compare_policies([LISTED], [config.with_changes(dataset="cifar10")], tmp_path / "run", **options, resume=True)
    paced = compare_policies([LISTED], [config], tmp_path / "paced", ("none",), budget="equal-time")
    assert set(paced.budget["pace"]["test_resnet"]) == {LISTED_NAME, "none"}
    for options in ({"modes": ("finetune",)}, {"against": ("sampler-only",)}):
        with pytest.raises(UsageError, match="needs a searched bundle, and none was given"):
            compare_policies([LISTED], [config], tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def test_bundles_with_one_split_are_noted(bundle: PolicyBundle, config: TrainConfig, make_search_config, tmp_path):
    twin = search_policy(make_search_config(**SMALL, seed=4))
    notes = compare_policies([bundle, twin], [config], tmp_path / "run", ()).notes
    assert len(notes) == 1
    assert "have the same split: their baselines are the same runs" in notes[0]


def test_the_proxy_is_tested_as_the_search_left_it(
    bundle: PolicyBundle, config: TrainConfig, make_search_config, tmp_path: Path, trained: list
) -> None:
    config = config.with_changes(arch="wrn10_1")
    compared = compare_policies([bundle], [config], tmp_path / "run", ("none",), seeds=2)
    (row,) = (row for row in compared.rows if row.policy == PROXY)
    assert (row.mode, row.epochs, row.seconds) == (None, 2, None)
    assert len(trained) == 4
    assert any("proxy: wrn10_1 was searched for 2 epochs, the others train for 1" in text for text in compared.notes)
    network, test = bundle.build_extractor(CPU), load_splits(config, CPU, "train", bundle.meta_validation).test()
    ((images, labels),) = test.batches([(0, torch.arange(len(test)))])
    contract = bundle.manifest.input
    mean, std = (torch.tensor(values)[:, None, None] for values in (contract.mean, contract.std))
    with torch.no_grad():
        hits = network((images.float() / 255 - mean) / std).argmax(1) == labels
    assert row.test_top1 == pytest.approx(100 * hits.float().mean().item(), abs=1e-4)
    again = compare_policies([bundle], [config], tmp_path / "run", ("none",), seeds=2, resume=True)
    assert figures(again) == figures(compared)

    own = search_policy(make_search_config(**SMALL, extractor="own"))
    for other, changed in ((own, config), (bundle, config.with_changes(model_args={"drop_rate": 0.1}))):
        found = compare_policies([other], [changed], tmp_path / f"{len(changed.model_args)}{other.digest}", ())
        assert PROXY not in {row.policy for row in found.rows}


def test_a_run_that_fails_does_not_stop_the_others(
    bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config, *arguments, **options):
        if (config.policy, config.seed) == ("none", 0):
            raise TrainingError("iteration 2", "the loss is nan", "lower learning_rate")
        return train_network(config, *arguments, **options)

    monkeypatch.setattr("mapolicy.compare.run_job.train_network", train)
    messages = Messages()
    compared = compare_policies([bundle], [config], tmp_path / "run", ("none", "uniform"), seeds=2, reporter=messages)
    ((run, failure),) = compared.failed.items()
    assert str(run) == f"test_resnet, none, {bundle.digest[:12]}-seed0"
    assert (failure.exit_code, failure.why) == (4, "the loss is nan")
    assert len(compared.rows) == 5
    assert len(messages.runs) == 6
    assert {entry.policy: entry.n for entry in compared.summary} == {"learned": 2, "none": 1, "uniform": 2}
    assert compared.document()["failed"][0]["run"] == str(run)


def test_processes_take_the_visible_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_environments(torch.device("cuda")) == [{"CUDA_VISIBLE_DEVICES": name} for name in "012"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-ab")
    assert gpu_environments(torch.device("cuda")) == [{"CUDA_VISIBLE_DEVICES": name} for name in ("5", "GPU-ab")]
    assert gpu_environments(CPU) == [{}]


def test_processes_give_the_same_rows(bundle: PolicyBundle, config: TrainConfig, tmp_path: Path) -> None:
    config = config.with_changes(arch="wrn10_1")
    alone = compare_policies([bundle, LISTED], [config], tmp_path / "alone", ("none",))
    config = config.with_changes(threads=0)
    messages = Messages()
    together = compare_policies([bundle, LISTED], [config], tmp_path / "together", ("none",), jobs=2, reporter=messages)
    assert figures(together) == figures(alone)
    assert len(together.rows) == 4
    assert together.hardware["threads"] == 1
    assert together.hardware["jobs"] == 2
    assert len(messages.runs) == 4


def test_under_equal_time_the_cheaper_runs_get_more_epochs(
    bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, trained: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def seconds(config, policies, split_of):
        asked.append([(policy.policy, policy.mode, policy.bundle(split_of).digest) for policy in policies])
        return [2.0, 5.0, 1.0]

    monkeypatch.setattr("mapolicy.compare.equal_time.seconds_per_iteration", seconds)
    arguments = ([bundle], [config.with_changes(epochs=2)], tmp_path / "run", ("none",), ("frozen", "finetune"))
    compared = compare_policies(*arguments, budget="equal-time")
    learned, digest = "learned", bundle.digest
    assert asked == [[(learned, "frozen", digest), (learned, "finetune", digest), ("none", "frozen", digest)]]
    assert [(run.policy, run.mode, run.epochs) for run in trained] == [
        (learned, "frozen", 5), (learned, "finetune", 2), ("none", "frozen", 10)
    ]  # fmt: skip
    assert [row.epochs for row in compared.rows] == [5, 2, 10]
    assert compared.budget["pace"]["test_resnet"]["none"] == {"seconds_per_iteration": 1.0, "epochs": 10}

    trained.clear()
    again = compare_policies(*arguments, budget="equal-time", resume=True)
    assert figures(again) == figures(compared)
    assert (trained, len(asked)) == ([], 1)
    for changed, message in (
        ({"budget": "equal-epochs"}, "budget equal-time -> equal-epochs"),
        ({"budget": "equal-time", "against": ("uniform",)}, "test_resnet with uniform was not measured at its start"),
    ):
        with pytest.raises(InputError, match=message):
            compare_policies(*arguments[:3], **{"against": ("none",), **changed}, resume=True)
    longer = [config.with_changes(epochs=3)]
    with pytest.raises(InputError, match="test_resnet: epochs 2 -> 3"):
        compare_policies([bundle], longer, *arguments[2:], budget="equal-time", resume=True)


def test_the_deviation_of_whole_epochs_from_equal_time_is_reported(
    bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, trained: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mapolicy.compare.equal_time.seconds_per_iteration", lambda *arguments: [2.5, 1.0])
    messages = Messages()
    compare_policies([bundle], [config], tmp_path / "run", ("none",), budget="equal-time", reporter=messages)
    epochs = config.epochs
    assert any(f"learned {epochs}, none {round(2.5 * epochs)} (-20% of time)" in text for text in messages.notes)


BAD = {
    "no policy": ({"against": ("none", "best")}, "against: 'best' is not one of sampler-only"),
    "learned against itself": ({"against": ("learned",)}, "'learned' is not one of"),
    "twice": ({"against": ("none", "none")}, "none was named twice"),
    "no mode": ({"modes": ("thawed",)}, "mode: 'thawed' is not one of frozen, finetune"),
    "no modes": ({"modes": ()}, "mode: nothing was named"),
    "no seeds": ({"seeds": 0}, "seeds: 0 is not at least 1"),
    "no jobs": ({"jobs": 0}, "jobs: 0 is not at least 1"),
    "no budget": ({"budget": "equal-joy"}, "budget: 'equal-joy' is not one of equal-epochs"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments_are_rejected_before_any_training(
    bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, trained: list, case: str
) -> None:
    options, message = BAD[case]
    with pytest.raises(UsageError, match=message):
        compare_policies([bundle], [config], tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


def test_networks_and_bundles_that_do_not_match_are_rejected_before_any_training(
    bundle: PolicyBundle, other_bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, trained: list
) -> None:
    def rejected(error: type[Exception], message: str, bundles: list[PolicyBundle], *configs: TrainConfig, **options):
        with pytest.raises(error, match=message):
            compare_policies(bundles, configs, tmp_path / "run", ("none",), **options)

    rejected(UsageError, "closest are wrn16_2, wrn40_2, wrn10_1", [bundle], config, config.with_changes(arch="wrn11_2"))
    rejected(UsageError, "test_resnet was named twice", [bundle], config, config)
    rejected(UsageError, "was named twice", [bundle, bundle], config)
    rejected(UsageError, "img_size", [bundle], config, config.with_changes(arch="vit_tiny_patch16_224"))
    rejected(InputError, "split_seed: is 5", [bundle], config.with_changes(split_seed=5))
    rejected(InputError, "operation_space", [bundle], config.with_changes(operation_space="wide"))
    included = config.with_changes(include_validation=True)
    rejected(UsageError, "cannot be trained on", [bundle], included, modes=("frozen", "finetune"))
    data = other_bundle.manifest.dataset.model_copy(update={"name": "letters"})
    letters = PolicyBundle(other_bundle.manifest.model_copy(update={"dataset": data}), other_bundle.tensors)
    rejected(InputError, "another data set", [bundle, letters], config)
    data = bundle.manifest.dataset.model_copy(update={"fingerprint": "0" * 64})
    altered = PolicyBundle(bundle.manifest.model_copy(update={"dataset": data}), bundle.tensors)
    rejected(InputError, "its images are not those of the bundle's", [altered], config)
    assert trained == []
    assert list(tmp_path.iterdir()) == []


def test_what_every_run_says_is_said_once(
    bundle: PolicyBundle, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config, bundle, reporter, *arguments, **options):
        reporter.on_note("images of 105 x 105 are used at 8 x 8")
        reporter.on_note(f"draws by {config.policy}")
        return train_network(config, bundle, reporter, *arguments, **options)

    monkeypatch.setattr("mapolicy.compare.run_job.train_network", train)
    messages = Messages()
    compare_policies([bundle], [config], tmp_path / "run", ("none",), seeds=1, reporter=messages)
    of_runs = [text for text in messages.notes if text.startswith("test_resnet, ")]
    assert [text.partition(": ")[2] for text in of_runs] == [
        "images of 105 x 105 are used at 8 x 8",
        "draws by learned",
        "draws by none",
    ]
