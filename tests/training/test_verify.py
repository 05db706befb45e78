"""A search that checks itself: equal trainings, the strength that is kept, resumption."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mapolicy import PolicyBundle, search_policy
from mapolicy.distributed import Communicator
from mapolicy.errors import InputError, TrainingError
from mapolicy.policy.samplers import LearnedDraws
from mapolicy.search import forecast_search
from mapolicy.training.callbacks import Reporter
from mapolicy.training.pace import Deadline
from mapolicy.training.setup import TrainingSetup
from mapolicy.training.verify import candidates, left_out, training_seconds, verify

CPU = torch.device("cpu")
ALIGNMENT = {"sampler": "alignment", "weighting": "equal"}
KEYS = ["none", "uniform", "trivialaugment", "randaugment", "learned 3", "learned 1.5"]
ORDER = ["learned 3", "uniform", "trivialaugment", "learned 1.5", "none", "randaugment"]  # of the trainings


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def verified(self) -> list[str]:
        told = [re.match(r"check: trained with (.*), the proxy is right about \d+\.\d %", text) for text in self.notes]
        return [
            re.sub(
                "policy (?!at)|the learned policy at strength (.*)",
                lambda m: f"learned {m[1]}" if m[1] else "",
                found[1],
            )
            for found in told
            if found
        ]


@pytest.fixture(scope="module")
def checked(make_search_config, tmp_path_factory) -> SimpleNamespace:
    """A search of one epoch that verified itself, and its folder."""
    config = make_search_config(epochs=1, verify=True, **ALIGNMENT)
    folder, log = tmp_path_factory.mktemp("verified") / "run", Notes()
    return SimpleNamespace(config=config, folder=folder, log=log, bundle=search_policy(config, log, folder))


@pytest.fixture(scope="module")
def splits(checked: SimpleNamespace):
    return TrainingSetup.build(checked.config, CPU).splits


@pytest.fixture
def record(checked: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the trainings that the search has kept."""
    copy = tmp_path / "verification.json"
    copy.write_bytes((checked.folder / "verification.json").read_bytes())
    return copy


def from_record(checked: SimpleNamespace, splits, record: Path, **right: list[int]):
    """The verification of trainings that were right about these images; no network is trained."""
    kept = json.loads(record.read_text())
    kept["right"] |= {key.replace("_", " "): value for key, value in right.items()}
    record.write_text(json.dumps(kept))
    return verify(checked.config, splits, CPU, draws(checked.bundle), Reporter(), record)


def draws(bundle: PolicyBundle) -> LearnedDraws:
    return LearnedDraws(bundle.probabilities, bundle.means, bundle.manifest.levels, log_levels(bundle))


def log_levels(bundle: PolicyBundle) -> torch.Tensor:
    found = bundle.log_levels
    assert found is not None
    return found


def test_a_search_compares_six_trainings(checked: SimpleNamespace) -> None:
    found = checked.bundle.manifest.verification
    assert found is not None
    assert (found.images, found.unseen, found.epochs) == (len(checked.bundle.meta_validation), False, 1)
    names = ["none", "uniform", "trivialaugment", "randaugment", "learned", "learned"]
    assert [row.policy for row in found.rows] == names
    assert [row.strength for row in found.rows] == [None, None, None, None, 3, 1.5]
    assert checked.log.verified() == ORDER
    assert all(0 < row.correct < found.images for row in found.rows), "it has learned something"
    assert len({row.correct for row in found.rows}) > 1


def test_rows_are_what_the_trainings_were_right_about(checked: SimpleNamespace) -> None:
    kept_strength = checked.bundle.strength
    right = json.loads((checked.folder / "verification.json").read_text())["right"]
    found = checked.bundle.manifest.verification
    kept = right["uniform" if kept_strength == 0 else f"learned {kept_strength:g}"]
    for key, row in zip(KEYS, found.rows, strict=True):
        pairs = list(zip(right[key], kept, strict=True))
        assert row.correct == sum(right[key])
        assert row.only_kept == sum(theirs and not own for own, theirs in pairs)
        assert row.only_this == sum(own and not theirs for own, theirs in pairs)


@pytest.mark.parametrize(
    ("best", "strength"),
    [("learned_3", 3.0), ("learned_1.5", 1.5), ("uniform", 0.0)],
)
def test_the_best_strength_is_kept(checked: SimpleNamespace, splits, record: Path, best: str, strength: float) -> None:
    images = len(splits.meta_validation)
    wrong = {key.replace(" ", "_"): [0] * images for key in KEYS}
    right = wrong | {best: [1] * 5 + [0] * (images - 5), "none": [1] * images}
    found, kept = from_record(checked, splits, record, **right)
    assert kept == strength, "baselines are compared, not kept"
    assert found.kept(kept).correct == 5
    assert found.rows[0].only_this == images - 5


def test_of_equally_good_strengths_the_searchs_own_is_kept(checked: SimpleNamespace, splits, record: Path) -> None:
    same = {key.replace(" ", "_"): [1] * len(splits.meta_validation) for key in KEYS}
    assert from_record(checked, splits, record, **same)[1] == 3.0


def test_a_resumed_search_reuses_finished_trainings(
    checked: SimpleNamespace, interrupted_after, tmp_path: Path
) -> None:
    """Interrupted after the last iteration; three trainings are in the record, one of them falsified."""
    whole = json.loads((checked.folder / "verification.json").read_text())
    with interrupted_after(checked.bundle.manifest.run.iterations):
        search_policy(checked.config, run_dir=tmp_path / "run")
    part = whole | {"right": {key: whole["right"][key] for key in KEYS[:3]}}
    (tmp_path / "run" / "verification.json").write_text(json.dumps(part))
    resumed = search_policy(checked.config, run_dir=tmp_path / "run", resume=True)
    assert resumed.to_bytes() == checked.bundle.to_bytes()
    assert json.loads((tmp_path / "run" / "verification.json").read_text()) == whole

    part["right"]["none"] = [0] * len(whole["right"]["none"])
    (tmp_path / "run" / "verification.json").write_text(json.dumps(part))
    falsified = search_policy(checked.config, run_dir=tmp_path / "run", resume=True).manifest.verification
    assert falsified.rows[0].correct == 0, "it was not trained again"
    assert falsified.rows[1:] == checked.bundle.manifest.verification.rows[1:]


@pytest.mark.parametrize("text", ["{", "[]", '{"identity": "other", "right": {"none": [0]}}', '{"identity": 1}'])
def test_a_record_that_is_damaged_or_of_another_search_is_not_used(
    checked: SimpleNamespace, splits, tmp_path: Path, text: str
) -> None:
    record = tmp_path / "verification.json"
    record.write_text(text)
    found, _ = verify(checked.config, splits, CPU, draws(checked.bundle), Reporter(), record)
    assert found == checked.bundle.manifest.verification


def test_without_verify_nothing_is_checked(checked: SimpleNamespace, make_search_config, tmp_path: Path) -> None:
    plain = search_policy(checked.config.with_changes(verify=False), run_dir=tmp_path / "run")
    assert plain.manifest.verification is None
    assert plain.manifest.format == 2
    assert plain.strength == 3.0
    assert torch.equal(log_levels(plain), log_levels(checked.bundle)), "the check does not change what is learned"
    assert not (tmp_path / "run" / "verification.json").exists()


def test_a_sampler_without_levels_is_not_checked_and_says_so(make_search_config) -> None:
    log = Notes()
    found = search_policy(make_search_config(epochs=1, verify=True), log)
    assert found.manifest.verification is None
    assert "the policy is not checked: sampler mean-weight learns no levels" in log.notes


def test_a_strength_of_zero_is_uniform() -> None:
    assert [each.key for each in candidates(0.0)] == KEYS[:4]
    assert [each.key for each in candidates(3.0)] == KEYS


def test_a_check_may_use_images_that_the_policy_has_not_seen(make_search_config) -> None:
    config = make_search_config(epochs=1, verify=True, verify_per_class=3, **ALIGNMENT)
    setup = TrainingSetup.build(config, CPU)
    splits, whole = setup.splits, TrainingSetup.build(config.with_changes(verify_per_class=0.0), CPU).splits
    assert splits.aside is not None
    assert torch.bincount(splits.aside.labels).tolist() == [3] * 10
    taken, kept = set(splits.aside.indices.tolist()), set(splits.train.indices.tolist())
    assert not taken & (kept | set(splits.meta_validation.indices.tolist()))
    assert taken | kept == set(whole.train.indices.tolist())
    assert splits.fingerprint == whole.fingerprint, "a training uses them, and it is the same data"
    bundle = search_policy(config)
    check = bundle.manifest.verification
    assert check is not None
    assert (check.images, check.unseen) == (30, True)
    assert bundle.manifest.dataset.counts.train == len(whole.train)
    with pytest.raises(InputError, match="verify_per_class sets 500 aside"):
        TrainingSetup.build(config.with_changes(verify_per_class=500.0), CPU)


def test_divergence_names_the_training(checked: SimpleNamespace, splits) -> None:
    hot = checked.config.with_changes(learning_rate=1e6, clip_norm=0.0, epochs=4)
    with pytest.raises(TrainingError, match="verification of learned 3: the loss is not finite; use --no-verify"):
        verify(hot, splits, CPU, draws(checked.bundle), Reporter())


def test_the_forecast_counts_the_trainings(checked: SimpleNamespace) -> None:
    with_check = forecast_search(checked.config)
    without = forecast_search(checked.config.with_changes(verify=False))
    assert without.check_seconds == 0
    assert 0 < with_check.check_seconds < with_check.seconds
    iterations = with_check.seconds_per_iteration * with_check.iterations
    rest = with_check.check_seconds + with_check.evaluation_seconds
    assert with_check.seconds == pytest.approx(iterations + rest)
    assert "of it check the policy" in with_check.facts()["time"]
    assert "check" not in without.facts()["time"]


def test_a_short_check_compares_three_trainings(checked: SimpleNamespace, splits) -> None:
    """The same three trainings as in a full one."""
    config = checked.config.with_changes(verification="short")
    log = Notes()
    found, strength = verify(config, splits, CPU, draws(checked.bundle), log)
    assert log.verified() == ORDER[:3]
    assert [row.policy for row in found.rows] == ["uniform", "trivialaugment", "learned"]
    full = {(row.policy, row.strength): row.correct for row in checked.bundle.manifest.verification.rows}
    assert all(row.correct == full[row.policy, row.strength] for row in found.rows)
    assert found.kept(strength) is not None
    assert {each.key for each in candidates(3.0, "short")} == {*log.verified()}
    assert [each.key for each in candidates(0.0, "short")] == ["uniform", "trivialaugment"]


# ---- against the clock


class Clock(Deadline):
    """Tells these seconds, one after the other; the last one for ever."""

    def __init__(self, *seconds: float) -> None:
        super().__init__(0.0, Communicator())
        object.__setattr__(self, "seconds", list(seconds))

    def left(self) -> float:
        return self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]


def rows_by_key(found) -> dict[str, int]:
    return {each.policy if each.strength is None else f"learned {each.strength:g}": each.correct for each in found.rows}


def test_a_check_that_has_time_is_the_same(checked: SimpleNamespace, splits, tmp_path: Path) -> None:
    record, log = tmp_path / "verification.json", Notes()
    found, _ = verify(checked.config, splits, CPU, draws(checked.bundle), log, record, deadline=Clock(3600.0))
    assert found == checked.bundle.manifest.verification
    assert json.loads(record.read_text()) == json.loads((checked.folder / "verification.json").read_text())
    assert not [note for note in log.notes if note.startswith("warning")]


def test_a_check_that_turns_slow_leaves_out_what_matters_least(checked: SimpleNamespace, splits, tmp_path) -> None:
    record, log = tmp_path / "verification.json", Notes()
    clock = Clock(3600.0, 3600.0, 3600.0, 0.0)  # at the start, and after each training
    found, _ = verify(checked.config, splits, CPU, draws(checked.bundle), log, record, deadline=clock)
    full = rows_by_key(checked.bundle.manifest.verification)
    assert rows_by_key(found) == {key: full[key] for key in ORDER[:3]}
    assert found.epochs == 1
    assert "warning: the check leaves out learned 1.5, none, randaugment, so that it ends in time" in log.notes
    assert left_out(checked.config, found) == ["none", "randaugment", "learned 1.5"]
    longer = checked.config.with_changes(epochs=3)
    assert left_out(longer, found)[3:] == ["2 epochs of each training"]
    assert left_out(checked.config, checked.bundle.manifest.verification) == []
    again, _ = verify(checked.config, splits, CPU, draws(checked.bundle), Notes(), record)
    assert again == found, "a resumed search, with all the time of the world, has decided already"


def test_a_check_that_has_begun_can_say_something(checked: SimpleNamespace, splits) -> None:
    found, strength = verify(
        checked.config, splits, CPU, draws(checked.bundle), Reporter(), deadline=Clock(3600.0, 0.0)
    )
    assert [*rows_by_key(found)] == ["uniform", "learned 3"]
    assert found.kept(strength) is not None


def test_a_check_may_be_of_fewer_epochs(checked: SimpleNamespace, splits, tmp_path: Path) -> None:
    """As many as a check that was planned so; the record keeps them apart."""
    long, log = checked.config.with_changes(epochs=2), Notes()
    one = training_seconds(long, splits, CPU, draws(checked.bundle))
    clock, record = Clock(2 * one, 3600.0), tmp_path / "verification.json"
    found, _ = verify(long, splits, CPU, draws(checked.bundle), log, record, deadline=clock)
    assert found is None or found.epochs == 1
    record.write_text(json.dumps({**json.loads(record.read_text()), "extent": {"epochs": 1, "left_out": ["none"]}}))
    found, _ = verify(long, splits, CPU, draws(checked.bundle), log, record)
    full = rows_by_key(checked.bundle.manifest.verification)
    assert {key: right for key, right in rows_by_key(found).items() if key in full} == {
        key: full[key] for key in KEYS if key != "none"
    }


def test_a_search_without_time_is_not_checked_and_says_so(checked: SimpleNamespace, tmp_path: Path) -> None:
    class Result(Notes):
        def on_complete(self, result) -> None:
            self.result = result

    log, config = Result(), checked.config
    found = search_policy(config, log, tmp_path / "run", deadline=time.monotonic())
    assert found.manifest.verification is None
    assert "warning: whether training with the policy helps is not checked, as the time is used up" in log.notes
    assert log.result["check_left_out"] == KEYS
    resumed = search_policy(config, run_dir=tmp_path / "run", resume=True)
    assert resumed.to_bytes() == found.to_bytes(), "what the clock decided is repeated"
    in_time = search_policy(config, run_dir=tmp_path / "other", deadline=time.monotonic() + 3600)
    assert in_time.to_bytes() == checked.bundle.to_bytes(), "where there is time, the clock decides nothing"


def test_an_interrupted_check_leaves_a_bundle(checked: SimpleNamespace, tmp_path: Path) -> None:
    class Interrupt(Notes):
        def on_note(self, text: str) -> None:
            super().on_note(text)
            if text.startswith("check: trained with policy uniform"):
                raise KeyboardInterrupt

    out, run = tmp_path / "b.safetensors", tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search_policy(checked.config, Interrupt(), run, out=out)
    unchecked = PolicyBundle.load(out)
    assert unchecked.manifest.verification is None
    assert unchecked.strength == 3.0
    assert torch.equal(log_levels(unchecked), log_levels(checked.bundle))
    log = Notes()
    resumed = search_policy(checked.config, log, run, resume=True, out=out)
    assert f"{out} is written; the check of its policy begins" in log.notes
    assert out.read_bytes() == resumed.to_bytes() == checked.bundle.to_bytes()
    assert {*json.loads((run / "verification.json").read_text())["right"]} == {*KEYS}


def test_the_time_left_includes_the_check(make_search_config) -> None:
    class Steps(Notes):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[tuple[int, float]] = []
            self.expected = 0.0

        def on_start(self, what: str, iterations: int, facts, seconds: float | None) -> None:
            self.iterations, self.expected = iterations, seconds

        def on_step(self, iteration: int, seconds_left: float) -> None:
            self.steps.append((iteration, seconds_left))

    log, config = Steps(), make_search_config(epochs=4, batch_size=64, verify=True, verification="short", **ALIGNMENT)
    search_policy(config, log)
    searched, last = log.steps[: log.iterations], log.iterations
    assert log.iterations >= 20, "a shorter run is not measured"
    assert [iteration for iteration, _ in searched] == [*range(1, last + 1)]
    assert searched[-1][1] > 0.1 * log.expected, "half of all work is still to do"
    check = log.steps[last:]
    assert [iteration for iteration, _ in check] == [last] * (3 * config.epochs)
    assert check[-1][1] == 0
    assert check[0][1] > check[-2][1] > 0
