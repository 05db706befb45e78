"""`mapolicy search`: the bundle, its run, and what it writes before and after."""

import re
import tomllib
from pathlib import Path

import pytest

from mapolicy import PolicyBundle
from mapolicy.bundle.findings import verdict, verification_lines
from tests.helpers.command_line import SHORT, TRAIN, save_greys, snapshot


def test_search_then_train_then_inspect(mapolicy, tmp_path: Path) -> None:
    paper = ("--set", "sampler=mean-weight", "--set", "weighting=policy")
    searched = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, *paper)
    assert searched.code == 0, searched.err
    digest = PolicyBundle.load(tmp_path / "artifacts" / "digits.safetensors").digest
    assert digest in searched.out
    assert "epoch 1" in searched.err
    assert "settings: from recipe search-digits" in searched.err
    assert (tmp_path / "runs" / "search-digits-wrn10_1-seed0" / "metrics.jsonl").exists()

    trained = mapolicy("train", "--bundle", "artifacts/digits.safetensors", *TRAIN, "--json")
    assert trained.code == 0, trained.err
    document = trained.json
    assert {"test_top1", "test_top5", "policy", "digest", "seconds", "cost_ratio", "run"} <= set(document)
    assert document["digest"] == digest
    assert document["policy"] == "learned"
    assert (tmp_path / document["run"] / "network.safetensors").exists()

    inspected = mapolicy("inspect", "artifacts/digits.safetensors")
    assert inspected.code == 0
    assert digest in inspected.out
    assert "likeliest transformations" in inspected.out
    assert re.search(
        r"^entropy of p_jk +[01]\.\d{5} of uniform \(by chance alone [01]\.\d{5} to [01]\.\d{5}\)$", inspected.out, re.M
    )
    for name in ("weights' spread", "signal to noise"):
        assert re.search(rf"^{name} +-?\d+\.\d{{4}} \(-?\d+\.\d{{4}} to -?\d+\.\d{{4}}, ", inspected.out, re.M), name


def test_search_json_is_one_document(mapolicy, tmp_path: Path) -> None:
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--json", "--out", "here.safetensors")
    assert {"bundle", "digest", "validation_top1", "alpha", "entropy", "seconds"} <= set(outcome.json)
    assert outcome.json["bundle"] == "here.safetensors"
    assert outcome.json["digest"] == PolicyBundle.load(tmp_path / "here.safetensors").digest


def test_search_ends_with_the_verdict_of_its_check(mapolicy, tmp_path: Path) -> None:
    chosen = ("--set", "sampler=alignment", "--set", "weighting=equal")
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, *chosen, "--verify")
    assert outcome.code == 0, outcome.err
    bundle = PolicyBundle.load(tmp_path / "artifacts" / "digits.safetensors")
    check = bundle.manifest.verification
    assert outcome.out.splitlines()[0] == verdict(check, bundle.strength)
    parts = ("what was learned", "\nbundle ", "\nnext ", "\ndetails\n", "The proxy was trained", bundle.digest)
    assert sorted(parts, key=outcome.out.index) == list(parts), "sentences first, figures last"
    assert re.search(r"^bundle +artifacts/digits.safetensors, 0\.\d MB$", outcome.out, re.M)
    assert "this policy sees the transformation, not the image" in outcome.out
    assert "weights' spread" not in outcome.out
    for label, text in verification_lines(check, bundle.strength):
        assert re.search(rf"^  {re.escape(label)} +{re.escape(text)}$", outcome.out, re.M), label
    same = tmp_path / "runs" / "search-digits-wrn10_1-seed0" / "config.toml"
    (tmp_path / "same.toml").write_bytes(same.read_bytes())
    document = mapolicy("search", "--recipe", "same.toml", "--no-verify", "--json", "--force").json
    assert document["verification"] is None
    assert document["levels"]["stages"] == bundle.manifest.levels.stages
    assert len(document["levels"]["relative_frequencies"]) == 14


def test_a_folder_is_searched_and_found_again_under_the_data_folder(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "data" / "greys", size=(12, 10))
    settings = ("--set", "batch_size=8", "--set", "image_size=8", "--set", "cutout=4", "--epochs", "1")
    searched = mapolicy("search", "folder:data/greys", "--proxy", "wrn10_1", *settings)
    assert searched.code == 0, searched.err
    trained = mapolicy(
        "train", "--bundle", "artifacts/greys.safetensors", "--arch", "test_resnet", "--set", "batch_size=8",
        "--epochs", "1", "--json",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    (tmp_path / "data" / "greys" / "dark" / "00.png").write_bytes(b"no image")
    again = mapolicy(
        "train", "--bundle", "artifacts/greys.safetensors", "--arch", "test_resnet", "--set", "batch_size=8", "--quiet"
    )
    assert again.code in (2, 3)


def test_resume_goes_on(mapolicy, tmp_path: Path) -> None:
    first = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--json")
    again = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--json", "--resume")
    assert again.code == 0, again.err
    assert again.json["digest"] == first.json["digest"]
    assert "goes on after iteration 5" in again.err


def test_existing_outputs_are_refused_without_force(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    search = ("search", "digits", "--proxy", "wrn10_1", *SHORT, "--out", "there.safetensors")
    mapolicy(*search).is_error(2, "there.safetensors", "--force")
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"
    assert mapolicy(*search, "--force").code == 0
    assert mapolicy(*search, "--out", "other.safetensors").code == 2, "the run folder is there"


def test_search_stores_half_precision(mapolicy, tmp_path: Path) -> None:
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--extractor-dtype", "float16", "--json")
    assert outcome.code == 0, outcome.err
    stored = PolicyBundle.load(tmp_path / outcome.json["bundle"])
    assert stored.manifest.extractor.dtype == stored.manifest.search.settings["extractor_dtype"] == "float16"
    assert stored.digest == outcome.json["digest"]
    assert stored.has_classifier
    assert outcome.json["effect_on_weights"]["largest_difference"] < 0.1


def test_an_impossible_output_exits_5_before_any_training(mapolicy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--out", "file/x.safetensors")
    outcome.is_error(5, "file/x.safetensors")
    assert snapshot(tmp_path) == ["file"]


def test_divergence_exits_4(mapolicy) -> None:
    outcome = mapolicy(
        "search", "digits", "--proxy", "wrn10_1", *SHORT, "--set", "learning_rate=1e18", "--set", "clip_norm=0",
        "--epochs", "4", "--quiet",
    )  # fmt: skip
    outcome.is_error(4, "iteration", "loss is")


def test_ctrl_c_exits_130(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mapolicy.search.search_policy", interrupt)
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", "--quiet")
    outcome.is_error(130, "--resume")


@pytest.mark.parametrize("stage", ["search", "train"])
def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    mapolicy, bundle_file: Path, tmp_path: Path, stage: str
) -> None:
    arguments = {
        "search": ("search", "digits", "--proxy", "wrn10_1", *SHORT),
        "train": ("train", "--bundle", bundle_file, "--mode", "finetune", "--out", "refined.safetensors", *TRAIN),
    }[stage]
    outcome = mapolicy(*arguments, "--dry-run")
    assert outcome.code == 0, outcome.err
    lines = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    assert set(lines) - {"feature map"} == {"settings", "network", "iterations", "memory", "time"}
    assert "GiB" in lines["memory"]
    document = mapolicy(*arguments, "--dry-run", "--json").json
    assert document["iterations"] == int(lines["iterations"]) == 5
    assert document["evaluation_seconds"] > 0
    assert document["seconds"] == pytest.approx(5 * document["seconds_per_iteration"] + document["evaluation_seconds"])
    assert set(document) > {"network", "parameters", "memory_bytes"}
    assert snapshot(tmp_path) == []


def test_a_dry_run_is_not_refused_for_what_is_there(mapolicy, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_text("mine")
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--out", "there.safetensors", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert snapshot(tmp_path) == ["there.safetensors"]
    assert (tmp_path / "there.safetensors").read_text() == "mine"


# ---- a search without options: what is chosen, and that it stays


def test_a_folder_alone_is_enough(mapolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned once: a resumed search and one from its config.toml have the same bytes, and plan nothing."""
    save_greys(tmp_path / "greys")
    command = ("search", "folder:greys", "--budget", "5s", "--set", "threads=1", "--no-verify", "--json")
    first = mapolicy(*command)
    assert first.code == 0, first.err
    run = tmp_path / "runs" / "search-greys-wrn10_1-seed0"
    made = (run / "config.toml").read_bytes()
    settings = tomllib.loads(made.decode())
    expected = {"image_size": 8, "batch_size": 24, "validation_per_class": 0.25, "base_augmentation": "flip_crop"}
    assert {name: settings[name] for name in expected} == expected
    for name in ("image_size 8: ", "proxy wrn10_1: ", "batch_size 24: ", f"epochs {settings['epochs']}: "):
        assert f"mapolicy: {name}" in first.err
    assert "flip_crop: images are mirrored and shifted" in first.err
    assert "(--set base_augmentation=)" in first.err
    assert "warning: 10 meta-validation images are too few" in first.err
    assert first.json["command_seconds"] > first.json["seconds"]

    monkeypatch.setattr("mapolicy.search.plan_search", None)
    resumed = mapolicy(*command, "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.json["digest"] == first.json["digest"]
    assert (run / "config.toml").read_bytes() == made
    (tmp_path / "same.toml").write_bytes(made)
    again = mapolicy("search", "--recipe", "same.toml", "--force", "--json", "--quiet")
    assert again.code == 0, again.err
    assert again.json["digest"] == first.json["digest"]


def test_what_is_typed_is_not_chosen(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "greys")
    typed = ("--epochs", "1", "--image-size", "16", "--set", "base_augmentation=none", "--no-verify")
    outcome = mapolicy("search", "folder:greys", *typed, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    chosen = {each["setting"]: each["value"] for each in outcome.json["plan"]}
    assert chosen == {"proxy": "wrn10_1", "cutout": 0, "validation_per_class": 0.25, "batch_size": 24}
    assert any("1 iteration is too few" in problem for problem in outcome.json["problems"])
    told = mapolicy("search", "folder:greys", *typed, "--dry-run").out
    assert re.search(r"^proxy  +wrn10_1: .*\(--proxy\)$", told, re.M)
    assert re.search(r"^warning  +1 iteration is too few", told, re.M)
    assert not (tmp_path / "runs").exists()


def test_a_recipe_has_no_limit_unless_one_is_typed(mapolicy) -> None:
    limited = mapolicy("search", "digits", "--budget", "1m", "--set", "threads=1", "--dry-run", "--json")
    assert limited.code == 0, limited.err
    assert {each["setting"] for each in limited.json["plan"]} <= {"epochs", "verification", "meta_every"}
    assert limited.json["iterations"] <= 20 * 10


@pytest.mark.parametrize("budget", ["soon", "10", "0s", "-1m", "1e3s", "10 m"])
def test_a_budget_is_a_time(mapolicy, budget: str) -> None:
    mapolicy("search", "digits", f"--budget={budget}").is_error(2, "--budget", "10m")


def test_a_budget_and_epochs_contradict_each_other(mapolicy) -> None:
    mapolicy("search", "digits", "--budget", "1m", "--epochs", "3").is_error(2, "--budget", "epochs")


def test_a_budget_that_is_too_short_is_told_and_used(mapolicy, tmp_path: Path) -> None:
    """One warning with one budget; the search does what it can, and its epochs are not those of a training."""
    outcome = mapolicy("search", "digits", "--budget", "1s", "--set", "threads=1", "--quiet")
    assert outcome.code == 0, outcome.err
    (warning,) = re.findall(r"warning: (.*--budget.*)", outcome.err)
    assert re.fullmatch(
        r"even \d+ iterations take about \d+s, not 1s, and a search needs \d+: give --budget \d+[sm]",
        warning,
    )
    settings = tomllib.loads((tmp_path / "runs" / "search-digits-wrn10_1-seed0" / "config.toml").read_text())
    assert settings["epochs"] == 1
    commands = re.findall(r"^(?:next|whether it helps) +mapolicy (.*)$", outcome.out, re.M)
    assert len(commands) == 2
    assert not any("--epochs" in command for command in commands)
