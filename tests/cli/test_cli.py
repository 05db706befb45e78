"""What the user types, through the installed entry point: output, exit codes, one-line errors."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from mapolicy.cli import options
from PIL import Image

from mapolicy import PolicyBundle
from mapolicy.training.checkpoint import load_checkpoint
from tests.helpers.bundle_factory import forge
from tests.helpers.hub_server import HubServer

(ENTRY_POINT,) = entry_points(group="console_scripts", name="mapolicy")
SHORT = ("--epochs", "1", "--set", "batch_size=256", "--set", "threads=1")
TRAIN = ("--arch", "test_resnet", *SHORT)


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)

    def is_error(self, code: int, *parts: str) -> None:
        """One line on stderr of printable ASCII, at most 240 characters, and nothing on stdout."""
        assert self.code == code, self.err
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert re.fullmatch(r"mapolicy: error: [ -~]+: [ -~]+", lines[0]), lines[0]
        assert len(lines[0]) <= 240
        for part in parts:
            assert part in lines[0]


@pytest.fixture
def mapolicy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Types a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def type_command(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mapolicy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            ENTRY_POINT.load()()
        out, err = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), out, err)

    return type_command


def snapshot(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# The main job.


def test_search_then_train_then_inspect(mapolicy, tmp_path: Path) -> None:
    searched = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT)
    assert searched.code == 0, searched.err
    digest = PolicyBundle.load(tmp_path / "artifacts" / "digits.safetensors").digest
    assert digest in searched.out
    assert "epoch 1" in searched.err
    assert "settings from recipe search-digits" in searched.err
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


def test_finetune_saves_the_refined_bundle(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    outcome = mapolicy(
        "train", "--bundle", bundle_file, "--mode", "finetune", *TRAIN, "--out", "refined.safetensors", "--json"
    )
    assert outcome.code == 0, outcome.err
    refined = PolicyBundle.load(tmp_path / "refined.safetensors")
    assert outcome.json["refined_digest"] == refined.digest != outcome.json["digest"]


@pytest.mark.parametrize("policy", ["none", "uniform", "trivialaugment"])
def test_baselines_need_no_bundle(mapolicy, policy: str) -> None:
    outcome = mapolicy("train", "digits", "--policy", policy, *TRAIN, "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    assert outcome.json["policy"] == policy
    assert outcome.json["digest"] is None
    assert outcome.err == ""


def test_a_baseline_may_take_its_split_from_a_bundle(mapolicy, bundle_file: Path) -> None:
    outcome = mapolicy("train", "--bundle", bundle_file, "--policy", "none", *TRAIN, "--json")
    assert outcome.json["policy"] == "none"


def test_a_folder_is_searched_and_found_again_under_the_data_folder(mapolicy, tmp_path: Path) -> None:
    for label, grey in (("dark", 40), ("light", 200)):
        for number in range(20):
            folder = tmp_path / "data" / "greys" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), (grey + number, grey, grey)).save(folder / f"{number}.png")
    settings = ("--set", "batch_size=8", "--set", "image_size=8", "--set", "cutout=4", "--epochs", "1")
    searched = mapolicy("search", "folder:data/greys", "--proxy", "wrn10_1", *settings)
    assert searched.code == 0, searched.err
    trained = mapolicy(
        "train", "--bundle", "artifacts/greys.safetensors", "--arch", "test_resnet", "--set", "batch_size=8",
        "--epochs", "1", "--json",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    (tmp_path / "data" / "greys" / "dark" / "0.png").write_bytes(b"no image")
    again = mapolicy(
        "train", "--bundle", "artifacts/greys.safetensors", "--arch", "test_resnet", "--set", "batch_size=8", "--quiet"
    )
    assert again.code in (2, 3)


def test_inspect_json_and_its_figures(mapolicy, bundle_file: Path, bundle: PolicyBundle) -> None:
    facts = mapolicy("inspect", bundle_file, "--json").json
    assert facts["digest"] == bundle.digest
    assert facts["alpha"] == [pytest.approx(bundle.alpha.item())]
    probabilities = bundle.probabilities.flatten()
    assert facts["likeliest"][0]["probability"] == pytest.approx(probabilities.max().item())
    assert facts["unlikeliest"][0]["probability"] == pytest.approx(probabilities.min().item())
    first = facts["likeliest"][0]
    names = bundle.manifest.operations.names
    row, column = names.index(first["first"]), names.index(first["second"])
    assert bundle.probabilities[row, column].item() == pytest.approx(first["probability"])
    assert facts["parameters"]["policy"] == sum(p.numel() for p in bundle.build_policy().parameters())


def test_resume_goes_on(mapolicy, tmp_path: Path) -> None:
    first = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--json")
    again = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--json", "--resume")
    assert again.code == 0, again.err
    assert again.json["digest"] == first.json["digest"]
    assert "goes on after iteration 5" in again.err


# Comparisons.

COMPARE = ("compare", "--arch", "test_resnet", "--against", "none,uniform", *SHORT)


def test_compare_prints_a_table_and_goes_on(mapolicy, bundle_file: Path, bundle: PolicyBundle, tmp_path: Path) -> None:
    command = (*COMPARE, "--bundle", bundle_file, "--run-dir", "run")
    first = mapolicy(*command, "--seeds", "1", "--mode", "frozen, finetune")
    assert first.code == 0, first.err
    for text in ("learned, finetune", "uniform", "to best baseline", "no interval", "269 images", bundle.digest[:12]):
        assert text in first.out
    assert "test_resnet: settings from recipe train-digits" in first.err
    assert re.search(r"4 of 4: test_resnet, uniform, \w+-seed0: \d+\.\d\d % test top-1; 0:00 left", first.err)
    mapolicy(*command, "--seeds", "2").is_error(2, "holds a run", "--resume")
    again = mapolicy(*command, "--seeds", "2", "--resume", "--json", "--quiet")
    assert again.code == 0, again.err
    assert "3 of 6 runs were finished before" in again.err
    document = again.json
    assert document["run"] == "run"
    assert len(document["rows"]) == 6
    row = {"arch", "policy", "mode", "seed", "bundle", "test_top1", "test_top5", "seconds", "cost_ratio"}
    assert all(row <= set(found) for found in document["rows"])
    learned = document["summary"][0]
    assert (learned["policy"], learned["mode"], learned["n"]) == ("learned", "frozen", 2)
    accuracy = {(found["policy"], found["seed"]): found["test_top1"] for found in document["rows"]}
    gains = [accuracy["learned", seed] - accuracy["uniform", seed] for seed in (0, 1)]
    assert learned["versus_uniform"]["mean"] == pytest.approx(sum(gains) / 2)
    assert {"hardware", "versions", "settings", "budget", "bundles", "notes"} <= set(document)
    table = mapolicy(*command, "--seeds", "2", "--resume", "--quiet", "--chart", "gain.svg").out
    assert f"{learned['versus_uniform']['mean']:+.2f} ± {learned['versus_uniform']['half_width']:.2f}" in table
    assert f">{learned['versus_rival']['mean']:+.2f} ±" in (tmp_path / "gain.svg").read_text()


def test_compare_says_which_run_failed_and_shows_the_others(mapolicy, bundle_file: Path) -> None:
    outcome = mapolicy(
        *COMPARE, "--bundle", bundle_file, "--seeds", "1", "--set", "learning_rate=1e30", "--set", "clip_norm=0",
        "--set", "warmup_epochs=0", "--json", "--quiet",
    )  # fmt: skip
    assert outcome.code == 4
    assert outcome.json["rows"] == []
    assert len(outcome.json["failed"]) == 3
    assert re.search(r"error: test_resnet, learned, \w+-seed0 and 2 more: iteration \d+: ", outcome.err)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--arch", "test_resnet"), ("--bundle",)),
        (("--bundle", "BUNDLE"), ("--arch",)),
        (("--bundle", "BUNDLE", "--arch", "wrn11_2"), ("wrn10_1", "closest")),
        (("--bundle", "BUNDLE", "--arch", "test_resnet", "--against", "none,best"), ("'best'", "uniform")),
        (("--bundle", "BUNDLE", "--arch", "test_resnet", "--mode", "thawed"), ("'thawed'",)),
        (("--bundle", "BUNDLE", "--arch", "test_resnet", "--seeds", "0"), ("--seeds",)),
        (("--bundle", "BUNDLE", "--arch", "test_resnet", "--set", "policy=none"), ("--against",)),
        (("--bundle", "BUNDLE", "--arch", "test_resnet", "--chart", "gain.pdf"), ("gain.pdf", ".svg")),
        (
            ("--bundle", "BUNDLE", "--arch", "test_resnet", "--chart", "a.svg", "--against", "sampler-only"),
            ("--against",),
        ),
        (
            ("--bundle", "BUNDLE", "--arch", "test_resnet", "--expect-digest", "0" * 64, "--expect-digest", "1" * 64),
            ("one for",),
        ),
        (
            ("--bundle", "BUNDLE", "--arch", "test_resnet", "--mode", "finetune", "--include-validation"),
            ("trained on",),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_compare_refuses_what_cannot_be_meant(mapolicy, bundle_file: Path, tmp_path: Path, arguments, parts) -> None:
    mapolicy("compare", *(bundle_file if part == "BUNDLE" else part for part in arguments), "--quiet").is_error(
        2, *parts
    )
    assert snapshot(tmp_path) == []


def test_compare_takes_bundles_of_either_kind_with_the_expected_digests(
    mapolicy, bundle_file: Path, bundle: PolicyBundle, tmp_path: Path
) -> None:
    assert mapolicy("import", "randaugment:2,9", "--out", "listed.safetensors").code == 0
    listed = mapolicy("inspect", "listed.safetensors", "--json").json["digest"][:12]
    mapolicy(*COMPARE, "--bundle", "listed.safetensors").is_error(2, "DATASET")
    split = ("--set", "train_per_class=13", "--set", "validation_per_class=5", "--set", "batch_size=64")
    command = ("compare", "digits", "--bundle", "listed.safetensors", "--arch", "test_resnet", *split)
    compared = mapolicy(*command, "--epochs", "1", "--seeds", "1", "--against", "none", "--run-dir", "alone", "--quiet")
    assert compared.code == 0, compared.err
    assert f"dataset-level-{listed}" in compared.out
    assert f"{listed} (RandAugment, N 2, M 9 of 30" in compared.out
    mapolicy(*COMPARE, "--bundle", bundle_file, "--expect-digest", "0" * 64).is_error(3, bundle.digest[:12])
    mapolicy(*COMPARE, "--bundle", "missing.safetensors").is_error(3, "missing.safetensors")


def test_existing_outputs_are_refused_without_force(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    search = ("search", "digits", "--proxy", "wrn10_1", *SHORT, "--out", "there.safetensors")
    mapolicy(*search).is_error(2, "there.safetensors", "--force")
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"
    assert mapolicy(*search, "--force").code == 0
    assert mapolicy(*search, "--out", "other.safetensors").code == 2, "the run folder is there"


def test_settings_and_flags_override_the_recipe(mapolicy, tmp_path: Path) -> None:
    import tomllib

    outcome = mapolicy(
        "train", "digits", "--policy", "none", *TRAIN, "--seed", "7", "--set", "weight_decay=0.25",
        "--model-arg", "drop_rate=0.5", "--run-dir", "run", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    saved = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (saved["seed"], saved["weight_decay"], saved["model_args"]) == (7, 0.25, {"drop_rate": 0.5})
    # A run's configuration is a recipe.
    again = mapolicy("train", "--recipe", "run/config.toml", "--run-dir", "again", "--json")
    assert again.json["test_top1"] == outcome.json["test_top1"]


def test_a_baselines_configuration_stays_a_baseline_beside_a_bundle(mapolicy, bundle_file: Path) -> None:
    command = ("train", "--bundle", bundle_file)
    assert mapolicy(*command, "--policy", "uniform", *TRAIN, "--run-dir", "first").code == 0
    again = mapolicy(*command, "--recipe", "first/config.toml", "--run-dir", "second", "--json")
    assert again.json["policy"] == "uniform"


def test_inspect_counts_parameters_and_no_buffers(mapolicy, bundle_file: Path, bundle: PolicyBundle) -> None:
    extractor = bundle.build_extractor(torch.device("cpu"))
    counted = mapolicy("inspect", bundle_file, "--json").json["parameters"]["extractor"]
    assert counted == sum(parameter.numel() for parameter in extractor.parameters())


def test_slim_and_go_on_learning(mapolicy, bundle_file: Path, bundle: PolicyBundle, tmp_path: Path) -> None:
    outcome = mapolicy("slim", bundle_file, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json
    assert document["bundle"] == "artifacts/digits-slim.safetensors"
    assert document["made_of"] == bundle.digest != document["digest"]
    assert document["bytes"] < 0.8 * document["bytes_before"] == 0.8 * bundle_file.stat().st_size
    assert document["rank_correlation"] > 0.9
    assert document["largest_difference"] < 0.1
    command = ("train", "--bundle", document["bundle"], *TRAIN, "--json")
    assert mapolicy(*command, "--run-dir", "frozen").json["digest"] == document["digest"]
    refined = mapolicy(*command, "--run-dir", "finetuned", "--mode", "finetune", "--out", "refined.safetensors")
    assert refined.code == 0, refined.err
    shown = mapolicy("slim", "refined.safetensors", "--extractor-dtype", "bfloat16", "--out", "coarse.safetensors")
    assert "correlation" in shown.out
    assert PolicyBundle.load(tmp_path / "coarse.safetensors").manifest.extractor.dtype == "bfloat16"
    mapolicy("slim", bundle_file, "--extractor-dtype", "int8", "--out", "x").is_error(2, "float16")


def test_search_stores_half_precision(mapolicy, tmp_path: Path) -> None:
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--extractor-dtype", "float16", "--json")
    assert outcome.code == 0, outcome.err
    stored = PolicyBundle.load(tmp_path / outcome.json["bundle"])
    assert stored.manifest.extractor.dtype == stored.manifest.search.settings["extractor_dtype"] == "float16"
    assert stored.digest == outcome.json["digest"]
    assert stored.has_classifier
    assert outcome.json["effect_on_weights"]["largest_difference"] < 0.1


@pytest.mark.parametrize(("form", "name"), [("torchvision", "py"), ("albumentations", "json")])
def test_export(mapolicy, bundle_file: Path, tmp_path: Path, form: str, name: str) -> None:
    outcome = mapolicy("export", bundle_file, "--to", form)
    assert outcome.code == 0, outcome.err
    assert "the weights P_i" in outcome.out
    assert snapshot(tmp_path / "artifacts") == [f"digits_{form}.{name}"]
    mapolicy("export", bundle_file, "--to", form).is_error(2, "exists")
    mapolicy("export", bundle_file, "--to", "kornia").is_error(2, "torchvision")
    assert "lost" in mapolicy("export", bundle_file, "--to", form, "--force", "--json").json


def test_a_published_policy_is_a_bundle_like_any_other(mapolicy, hub_server: HubServer, tmp_path: Path) -> None:
    imported = mapolicy("import", "autoaugment-cifar10", "--json")
    assert imported.code == 0, imported.err
    document = imported.json
    assert document["bundle"] == "artifacts/autoaugment-cifar10.safetensors"
    assert (document["sub_policies"], document["lost"]) == (25, [])
    shown = mapolicy("inspect", document["bundle"])
    assert document["digest"] in shown.out
    assert "Rotate (0.7, +-6.66667) then TranslateX" in shown.out
    assert mapolicy("inspect", document["bundle"], "--json").json["digest"] == document["digest"]

    pushed = mapolicy("push", document["bundle"], "birds/aa", "--json")
    assert pushed.code == 0, pushed.err
    command = ("train", "--bundle", "hf://birds/aa", *TRAIN, "--json", "--run-dir", "run")
    trained = mapolicy(*command, "digits", "--expect-digest", document["digest"])
    assert trained.code == 0, trained.err
    assert trained.json["digest"] == document["digest"]
    assert trained.json["weight_spread"] == pytest.approx(0, abs=1e-6)
    assert mapolicy("pull", pushed.json["bundle"], "--json").json["digest"] == document["digest"]

    mapolicy(*command).is_error(2, "DATASET")
    mapolicy(*command, "digits", "--mode", "finetune", "--force").is_error(2, "finetune")
    mapolicy(*command, "digits", "--expect-digest", "0" * 64).is_error(3, "digest")
    mapolicy("slim", document["bundle"], "--out", "x").is_error(3, "dataset-level")
    mapolicy("export", document["bundle"], "--out", "x").is_error(3, "has no p_jk", "inspect FILE --json")
    mapolicy("import", "randaugment:9,9").is_error(2, "1 to 3")
    mapolicy("import", "none.py").is_error(3, "No such file")
    assert not (tmp_path / "x").exists()


# Sharing.


def test_push_pull_train(
    mapolicy, bundle_file: Path, bundle: PolicyBundle, hub_server: HubServer, tmp_path: Path
) -> None:
    pushed = mapolicy("push", bundle_file, "birds/digits", "--licence", "cc0-1.0", "--json")
    assert pushed.code == 0, pushed.err
    commit = pushed.json["commit"]
    assert pushed.json == {"bundle": f"hf://birds/digits@{commit}", "commit": commit, "digest": bundle.digest}
    files = hub_server.repositories["birds/digits"][commit]
    assert files["policy.safetensors"] == bundle_file.read_bytes()
    assert b"license: cc0-1.0" in files["README.md"]
    assert files["p_jk.png"].startswith(b"\x89PNG")

    pulled = mapolicy("pull", "hf://birds/digits", "--json", "--expect-digest", bundle.digest)
    assert pulled.json["from"] == f"hf://birds/digits@{commit}"
    assert (tmp_path / pulled.json["bundle"]).read_bytes() == bundle_file.read_bytes()
    assert pulled.json["bundle"] == "artifacts/digits.safetensors"
    mapolicy("pull", "hf://birds/digits").is_error(2, "exists", "--force")

    trained = mapolicy("train", "--bundle", "hf://birds/digits@main", *TRAIN, "--json", "--run-dir", "run")
    assert trained.code == 0, trained.err
    assert trained.json["bundle"] == f"hf://birds/digits@{commit}"
    assert f"bundle hf://birds/digits@{commit}" in trained.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["bundle"] == trained.json["bundle"]
    assert mapolicy("inspect", trained.json["bundle"], "--json").json["digest"] == bundle.digest

    again = mapolicy("push", bundle_file, "birds/digits", "--run", "run")
    assert again.code == 0, again.err
    assert "not stated" in again.out
    newest = hub_server.repositories["birds/digits"][hub_server.refs["birds/digits"]["main"]]
    assert b"| `test_resnet` | `frozen` |" in newest["README.md"]


def test_only_what_can_be_used_is_pushed(mapolicy, bundle: PolicyBundle, hub_server: HubServer, tmp_path: Path) -> None:
    name = next(name for name, tensor in bundle.tensors.items() if tensor.ndim == 4)
    huge = dict(bundle.tensors) | {name: torch.full_like(bundle.tensors[name], 3e38)}
    replace(bundle, tensors=huge).save(tmp_path / "huge")
    (tmp_path / "unfit").write_bytes(forge())
    for file, says in (("huge", "expected at most 1e+12"), ("unfit", "feature_width is 8")):
        assert mapolicy("inspect", file).code == 0
        mapolicy("push", file, "birds/digits").is_error(3, file, says)
    assert hub_server.log == []
    for command in ("inspect", "pull"):
        assert "its first use holds them against the architecture" in mapolicy(command, "huge").out


def test_a_card_is_seen_before_it_is_pushed(mapolicy, bundle_file: Path, hub_server: HubServer, tmp_path: Path) -> None:
    outcome = mapolicy("push", bundle_file, "birds/digits", "--card-only", "page")
    assert outcome.code == 0, outcome.err
    assert snapshot(tmp_path) == ["page", "page/README.md", "page/p_jk.png"]
    assert hub_server.log == []


def test_pull_from_a_drive_and_an_address(mapolicy, bundle_file: Path, hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.large["digits.safetensors"] = bundle_file.read_bytes()
    for source, expected in (
        (bundle_file, "artifacts/digits.safetensors"),
        (f"{hub_server.address}/plain/digits.safetensors?a=b", "artifacts/digits.safetensors"),
    ):
        pulled = mapolicy("pull", source, "--force")
        assert pulled.code == 0, pulled.err
        assert (tmp_path / expected).read_bytes() == bundle_file.read_bytes()


@pytest.mark.parametrize("command", ["inspect", "pull", "slim", "export", "train"])
def test_no_command_shows_a_secret(mapolicy, tmp_path: Path, command: str) -> None:
    for place in ("http://me:secret@host/a?key=secret", "https://host/a b?key=secret", "https://[::1?key=secret"):
        source = ("--bundle", place, *TRAIN) if command == "train" else (place,)
        outcome = mapolicy(command, *source)
        outcome.is_error(2, "http")
        assert "secret" not in outcome.err
    assert snapshot(tmp_path) == []


def test_what_cannot_be_shared_writes_nothing(
    mapolicy, bundle_file: Path, hub_server: HubServer, tmp_path: Path
) -> None:
    content = bundle_file.read_bytes()
    hub_server.commit("birds/damaged", {"policy.safetensors": content[:-8] + b"\1" * 8})
    mapolicy("push", bundle_file, "birds/new", "--expect-digest", "0" * 64).is_error(3, "another bundle than the one")
    assert "birds/new" not in hub_server.repositories
    mapolicy("pull", "hf://birds/damaged").is_error(3, "digest")
    mapolicy("train", "--bundle", "hf://birds/damaged", *TRAIN).is_error(3, "digest")
    mapolicy("pull", "hf://birds/none").is_error(3, "no such repository")
    mapolicy("pull", "hf://birds").is_error(2, "NAMESPACE/NAME")
    mapolicy("pull", bundle_file, "--expect-digest", "0" * 64).is_error(3, "digest")
    mapolicy("push", bundle_file, "digits").is_error(2, "NAMESPACE/NAME")
    mapolicy("push", "none.safetensors", "birds/digits").is_error(3, "No such file")
    mapolicy("push", bundle_file, "birds/digits", "--run", "none").is_error(3, "none")
    hub_server.faults += [("POST /api/repos", (401, {}))] * 2
    mapolicy("push", bundle_file, "birds/digits").is_error(5, "hf auth login")
    assert snapshot(tmp_path) == []
    assert "birds/digits" not in hub_server.repositories


# Errors.


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("search", "digits", "--proxy", "wrn11_2"), ("wrn10_1", "closest")),
        (("search", "digits", "--proxy", "hf-hub:timm/resnet18"), ("registry",)),
        (("search", "digits", "--proxy", "local-dir:/tmp"), ("registry",)),
        (("search", "digit", "--proxy", "wrn10_1"), ("digits",)),
        (("search",), ("DATASET",)),
        (("search", "digits", "--proxy", "wrn10_1", "--epochs", "0"), ("epochs",)),
        (("search", "digits", "--proxy", "wrn10_1", "--epochs", "-1"), ("epochs",)),
        (("search", "digits", "--proxy", "wrn10_1", "--epochs", "nan"), ("epochs",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "learning_rate=1e400"), ("learning_rate",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "learning_rate=nan"), ("learning_rate",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "learnig_rate=1"), ("learning_rate?",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "epochs"), ("KEY=VALUE",)),
        (("search", "digits", "--proxy", "wrn10_1", "--device", "tpu"), ("device",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "operation_space=huge"), ("metaaugment-v1",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "optimizer=sdg"), ("optimizer",)),
        (("search", "digits", "--proxy", "vit_tiny_patch16_224"), ("img_size",)),
        (("search", "digits", "--nonsense"), ("nonsense",)),
        (("train", "digits", "--arch", "resnet10t"), ("--bundle",)),
        (("train", "digits", "--arch", "resnet10t", "--policy", "best"), ("policy",)),
        (("train", "digits", "--arch", "resnet10t", "--policy", "none", "--mode", "finetune"), ("finetune",)),
        (("train", "digits", "--arch", "resnet10t", "--policy", "none", "--out", "x"), ("--out",)),
        (("fly",), ("fly",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_usage_errors_exit_2_and_write_nothing(mapolicy, tmp_path: Path, arguments: tuple, parts: tuple) -> None:
    mapolicy(*arguments).is_error(2, *parts)
    assert snapshot(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("train", "--bundle", "none.safetensors", "--arch", "resnet10t"), ("none.safetensors", "No such file")),
        (("inspect", "none.safetensors"), ("No such file",)),
        (("inspect", "."), ("folder",)),
        (("search", "folder:none", "--proxy", "wrn10_1"), ("none",)),
        (("search", "digits", "--proxy", "wrn10_1", "--recipe", "none"), ("recipe none",)),
        (("search", "digits", "--proxy", "wrn10_1", "--set", "batch_size=5000"), ("batch_size",)),
        (("search", "digits", "--proxy", "wrn10_1", "--resume"), ("checkpoint",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_exits_3(mapolicy, arguments: tuple, parts: tuple) -> None:
    mapolicy(*arguments).is_error(3, *parts)


def test_a_recipe_with_an_unknown_key_exits_3(mapolicy, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("epocs = 3\n")
    mapolicy("search", "digits", "--proxy", "wrn10_1", "--recipe", "mine.toml").is_error(3, "epocs", "epochs?")
    (tmp_path / "mine.toml").write_text("epochs = = 3\n")
    mapolicy("search", "digits", "--proxy", "wrn10_1", "--recipe", "mine.toml").is_error(3, "not TOML")


def test_a_hostile_bundle_exits_3_and_another_digest_too(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    content = bytearray(bundle_file.read_bytes())
    content[-10] ^= 1
    (tmp_path / "edited.safetensors").write_bytes(content)
    mapolicy("inspect", "edited.safetensors").is_error(3, "digest")
    mapolicy("train", "--bundle", "edited.safetensors", *TRAIN).is_error(3, "digest")
    mapolicy("train", "--bundle", bundle_file, *TRAIN, "--expect-digest", "0" * 64).is_error(3, "digest")


def test_the_digest_is_printed_and_recorded_by_whatever_uses_a_bundle(
    mapolicy, bundle_file: Path, tmp_path: Path
) -> None:
    digest = PolicyBundle.load(bundle_file).digest
    assert digest in mapolicy("inspect", bundle_file, "--expect-digest", digest).out
    for kind in (("--mode", "frozen"), ("--policy", "uniform"), ("--mode", "finetune")):
        run = tmp_path / kind[1]
        outcome = mapolicy("train", "--bundle", bundle_file, *TRAIN, *kind, "--run-dir", run, "--expect-digest", digest)
        assert outcome.code == 0, outcome.err
        assert digest in outcome.out
        assert json.loads((run / "result.json").read_text())["digest"] == digest
        assert json.loads((run / "status.json").read_text())["digest"] == digest
        assert load_checkpoint(run / "checkpoint.safetensors")[1]["identity"]["bundle"] == digest
    assert mapolicy("inspect", bundle_file, "--expect-digest", digest.upper()).code == 0
    for command in ("inspect", "pull", "slim", "export", "compare", "train", "push"):
        # Before anything is opened: a digest with a mistake in it is no other digest.
        outcome = mapolicy(command, "missing", "--expect-digest", digest[:-1])
        outcome.is_error(2, "is not 64 hexadecimal digits")


def test_limits_are_raised_by_the_option_that_the_refusal_names(mapolicy, bundle_file: Path) -> None:
    outcome = mapolicy("inspect", bundle_file, "--limit", "tensors=9")
    outcome.is_error(3, "more than the 67 allowed", "--limit tensors=")
    option = re.search(r"--limit (\S+)", outcome.err)[1]
    assert mapolicy("inspect", bundle_file, "--limit", option).code == 0
    mapolicy("inspect", bundle_file, "--limit", "depth=9").is_error(2, "--limit", "header_bytes")
    mapolicy("train", "--bundle", bundle_file, *TRAIN, "--limit", "parameters=1000").is_error(3, "--limit parameters=7")
    mapolicy("train", "--bundle", bundle_file, *TRAIN, "--limit", "file_bytes=1000").is_error(3, "--limit file_bytes=")
    for command in (
        ("slim", bundle_file),
        ("export", bundle_file),
        ("pull", bundle_file),
        ("push", bundle_file, "a/b"),
    ):
        mapolicy(*command, "--limit", "tensors=9").is_error(3, f"--limit {option}")


def test_another_data_set_than_the_bundles(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    for label, grey in (("dark", 40), ("light", 200)):
        for number in range(20):
            folder = tmp_path / "greys" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), grey + number).save(folder / f"{number:02}.png")
    command = ("train", "folder:greys", "--bundle", bundle_file, "--arch", "test_resnet", "--epochs", "1")
    few = ("--set", "batch_size=8", "--set", "train_per_class=8", "--set", "validation_per_class=4", "--set",
           "test_per_class=4")  # fmt: skip
    refused = mapolicy(*command, "--set", "batch_size=8", "--json")
    refused.is_error(3, "folder:greys: has 2 classes, the bundle's data set 10", "--allow-dataset-mismatch")
    outcome = mapolicy(*command, *few, "--allow-dataset-mismatch", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    (warning,) = outcome.err.splitlines()
    assert warning.startswith(
        "mapolicy: warning: folder:greys is not the bundle's data set (has 2 classes, the bundle's"
    )
    assert "its class 0 is 'dark', the bundle's is '0'" in warning
    assert "may be test images" in warning
    assert len(outcome.json["dataset_mismatch"]) == 4
    finetune = mapolicy(*command, *few, "--allow-dataset-mismatch", "--mode", "finetune", "--run-dir", "other")
    finetune.is_error(2, "--allow-dataset-mismatch", "--mode frozen")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["cifar10", "omniglot", "torch/mnist"])
def test_a_bundles_word_does_not_reach_for_the_network(
    mapolicy, bundle: PolicyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = []

    def ask(url: str, **_) -> None:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", ask)
    draft = bundle.manifest.model_copy(
        update={
            "dataset": bundle.manifest.dataset.model_copy(update={"name": name}),
            "search": bundle.manifest.search.model_copy(
                update={"settings": bundle.manifest.search.settings | {"dataset": name}}
            ),
        }
    )
    PolicyBundle(draft, bundle.tensors).save(tmp_path / "a.safetensors")
    command = ("train", "--bundle", "a.safetensors", *TRAIN)
    outcome = mapolicy(*command)
    outcome.is_error(2 if "/" in name else 3, "download is false", "name DATASET yourself")
    assert asked == []
    assert snapshot(tmp_path) == ["a.safetensors"]
    for allowed in ((name,), ("--set", f"dataset={name}"), ("--set", "download=true")):
        mapolicy(*command[:1], *allowed, *command[1:]).is_error(3)
        assert asked
        asked.clear()


def test_what_a_bundle_says_is_shown_clean_whatever_the_terminal(tmp_path: Path) -> None:
    """Markup stays text, and what an encoding does not have is escaped instead of failing."""
    note = "[/bold] <script>alert(1)</script> é 字"
    path = tmp_path / "b.safetensors"
    path.write_bytes(forge({"note": note, "dataset.classes": ["zero", "eins", "deux", "三"]}))
    for encoding, expected in (("utf-8", note), ("ascii", note.encode("ascii", "backslashreplace").decode())):
        result = run_process("inspect", str(path), folder=tmp_path, PYTHONIOENCODING=encoding)
        assert result.returncode == 0, result.stderr
        assert f"note                   {expected}" in result.stdout
        assert "\x1b" not in result.stdout
    document = run_process("inspect", str(path), "--json", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert json.loads(document.stdout)["note"] == note


def test_a_file_of_any_name_is_shown_clean(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    odd = "a\x1b[31m\nzz\u202e.safetensors"
    (tmp_path / odd).write_bytes(bundle_file.read_bytes())
    for command in (
        ("inspect", odd),
        ("pull", odd, "--out", f"c{odd}"),
        ("export", odd, "--out", f"d{odd}"),
        ("slim", odd, "--out", f"e{odd}"),
        ("train", "--bundle", odd, *TRAIN, "--run-dir", f"f{odd}"),
        ("import", "autoaugment-cifar10", "--out", f"g{odd}"),
    ):
        outcome = mapolicy(*command)
        assert outcome.code == 0, outcome.err
        assert "a?[31m?zz?.safetensors" in outcome.out
        assert "\nzz" not in outcome.out
        for character in "\x1b\u202e":
            assert character not in outcome.out + outcome.err
    (next_line,) = [line for line in mapolicy("pull", bundle_file, "--out", "a b").out.splitlines() if "next" in line]
    assert "--bundle 'a b' --arch" in next_line


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


def test_a_bug_exits_1_with_a_traceback_only_for_debug(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__) -> None:
        raise ZeroDivisionError("by zero\nand \x1b[31mmore")

    monkeypatch.setattr("mapolicy.search.search_policy", fail)
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", "--quiet")
    outcome.is_error(1, "ZeroDivisionError", "bug")
    shown = mapolicy("search", "digits", "--proxy", "wrn10_1", "--quiet", "--debug", "--force")
    assert "Traceback" in shown.err


def test_a_refused_run_leaves_the_old_one_as_it_was(mapolicy, tmp_path: Path) -> None:
    run = ("train", "digits", "--policy", "none", "--run-dir", "keep")
    assert mapolicy(*run, *TRAIN).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "keep").iterdir()}
    mapolicy(*run, "--arch", "resnet51", "--force").is_error(2, "resnet51")
    assert {path.name: path.read_bytes() for path in (tmp_path / "keep").iterdir()} == before
    assert mapolicy(*run, *TRAIN, "--force").code == 0


def test_corrupt_images_are_counted_and_listed(mapolicy, tmp_path: Path) -> None:
    for label, grey in (("dark", 40), ("light", 200)):
        for number in range(20):
            folder = tmp_path / "greys" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (grey + number, grey, grey)).save(folder / f"{number:02}.png")
    for number in range(20):
        if number % 5 == 0:
            (tmp_path / "greys" / "dark" / f"{number:02}.png").write_bytes(b"no image")
    command = ("train", "folder:greys", "--arch", "wrn10_1", "--policy", "none", "--set", "batch_size=8")
    settings = ("--set", "image_size=8", "--set", "cutout=0", "--epochs", "1")
    mapolicy(*command, *settings, "--quiet").is_error(3, "png")
    outcome = mapolicy(*command, *settings, "--skip-corrupt", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    assert len(outcome.json["corrupt"]) == 4
    assert "images that cannot be decoded" in outcome.err
    assert "dark/" in outcome.err


def test_what_can_be_known_of_the_test_split_is_known_before_the_training(mapolicy, tmp_path: Path) -> None:
    command = ("train", "digits", "--policy", "none", *TRAIN)
    mapolicy(*command, "--set", "test_per_class=0").is_error(2, "test_per_class")
    for part, labels in (("train", ("cat", "dog")), ("test", ("cat", "eel"))):
        for label in labels:
            (tmp_path / "data" / "pets" / part / label).mkdir(parents=True)
            for number in range(8):
                Image.new("L", (8, 8), number).save(tmp_path / "data" / "pets" / part / label / f"{number}.png")
    mapolicy(
        "train", "folder:data/pets", "--policy", "none", "--arch", "wrn10_1", "--set", "batch_size=4"
    ).is_error(3, "only one of the two splits")  # fmt: skip
    assert not (tmp_path / "runs").exists()


TINY = ("--image-size", "8", "--batch-size", "4", "--rounds", "2")
ROW = {"what", "median_ms", "low_ms", "high_ms", "ratio", "against", "n"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("operations",), ["mapolicy", "pillow", "torchvision-tensor", "torchvision-pil", "timm"]),
        (
            ("step", "--arch", "wrn10_1", "--validation-batch-size", "4", "--no-memory"),
            ["plain", "exact", "double_backward"],
        ),
        (
            (
                "transfer",
                "--proxy",
                "wrn10_1",
                "--arch",
                "wrn10_1",
                "--set",
                "cutout=4",
                "--set",
                "extractor_dtype=float16",
            ),
            ["plain", "frozen", "uniform", "outside_networks"],
        ),
    ],
    ids=lambda value: value[0],
)
def test_bench_json_and_table(mapolicy, tmp_path: Path, arguments: tuple, names: list[str]) -> None:
    measured = mapolicy("bench", *arguments, *TINY, "--json")
    assert measured.code == 0, measured.err
    assert {"rows", "hardware", "versions", "time", "settings"} <= set(measured.json)
    rows = measured.json["rows"]
    assert set(names) <= {row["what"] for row in rows}
    for row in rows:
        assert set(row) >= ROW
        assert row["n"] == 2
    assert measured.json["hardware"]["threads"] == 1
    if arguments[0] != "operations":
        assert "precision" in json.dumps(measured.json["settings"]["configuration"]), "what a row depends on"
    assert "round 2 of 2" in measured.err

    shown = mapolicy("bench", *arguments, *TINY, "--quiet")
    assert shown.code == 0, shown.err
    assert shown.err == ""
    assert all(name in shown.out for name in (*names, "medians of 2 interleaved rounds", "torch"))
    assert snapshot(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("bench",), ("command line", "--help")),
        (("bench", "step", "--rounds", "0"), ("--rounds",)),
        (("bench", "step", "--arch", "wrn99_9"), ("wrn99_9", "wrn")),
        (("bench", "transfer", "--arch", "wrn99_9"), ("wrn99_9", "wrn")),
        (("bench", "operations", "--device", "tpu"), ("--device", "tpu")),
        (("bench", "step", "--set", "no_such=1"), ("no_such",)),
        (("bench", "transfer", "--set", "no_such=1"), ("no_such",)),
        (("bench", "transfer", "--set", "copies=2"), ("copies=2", "--batch-size")),
    ],
)
def test_bench_usage_errors_exit_2(mapolicy, arguments: tuple, parts: tuple) -> None:
    mapolicy(*arguments).is_error(2, *parts)


def test_no_arguments_show_the_help(mapolicy) -> None:
    outcome = mapolicy()
    assert outcome.code == 0
    assert "Usage: mapolicy" in outcome.out


# As a process of its own.


@contextlib.contextmanager
def searching(folder: Path, *arguments: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A search that takes its time, in its second epoch."""
    script = Path(sys.executable).with_name("mapolicy")
    command = [script, "search", "digits", "--proxy", "wrn10_1", "--epochs", "400", "--set", "threads=1", *arguments]
    how = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": folder} | how
    with subprocess.Popen(command, **how) as process:
        log = folder / "runs" / "search-digits-wrn10_1-seed0" / "metrics.jsonl"
        end = time.monotonic() + 240
        while not (log.exists() and "validation_top1" in log.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_ends_the_iteration_saves_and_can_be_resumed(tmp_path: Path, number: int, code: int) -> None:
    with searching(tmp_path) as process:
        begun = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert errors.count("--resume") == 1
    (run,) = (tmp_path / "runs").iterdir()
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", code)
    _, facts = load_checkpoint(run / "checkpoint.safetensors")
    assert facts["iteration"] == status["step"] >= 10


def test_a_second_run_in_the_folder_exits_6_and_names_the_first(mapolicy, tmp_path: Path, monkeypatch) -> None:
    with searching(tmp_path) as process:
        monkeypatch.chdir(tmp_path)
        before = sorted(path.name for path in tmp_path.rglob("*"))
        for more in ((), ("--resume",), ("--force",)):
            result = mapolicy("search", "digits", "--proxy", "wrn10_1", *more)
            result.is_error(6, "runs/search-digits-wrn10_1-seed0", f"process {process.pid} on")
        assert [name for name in sorted(path.name for path in tmp_path.rglob("*")) if ".tmp" not in name] == before


def test_a_terminal_that_goes_away_stops_a_run_as_a_signal_does(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with searching(tmp_path, stderr=theirs, stdout=theirs, stdin=theirs, start_new_session=True) as process:
        os.close(theirs)
        os.close(ours)  # reading and writing are errors from now on
        time.sleep(0.5)
        assert process.poll() is None, "it goes on without anybody to read it"
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 143
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert load_checkpoint(run / "checkpoint.safetensors")[1]["iteration"] > 0


def alive_in_group(group: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, its_group, *_ = path.read_text().rpartition(")")[2].split()
            found += [str(path)] if int(its_group) == group and state != "Z" else []
    return found


def test_ctrl_c_stops_a_comparison_side_by_side(bundle_file: Path, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mapolicy")
    command = [script, "compare", "--bundle", bundle_file, "--arch", "wrn10_1", "--against", "none", "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--epochs", "400", "--run-dir", "run"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 240
    while len([path for path in (tmp_path / "run").rglob("metrics.jsonl") if path.stat().st_size]) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group
    out, errors = process.communicate(timeout=240)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in errors
    assert "--resume goes on from its last checkpoint" in errors.splitlines()[-1]
    for policy in ("learned", "none"):
        (run,) = (tmp_path / "run" / "wrn10_1" / policy).iterdir()
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
        assert load_checkpoint(run / "checkpoint.safetensors")[1]["iteration"] > 0
    while alive_in_group(process.pid):  # multiprocessing's own tracker hears a moment later
        assert time.monotonic() < end
        time.sleep(0.1)


def run_process(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    script = Path(sys.executable).with_name("mapolicy")
    return subprocess.run(
        [script, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_inspect_does_not_import_torch(bundle_file: Path) -> None:
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        f"sys.argv = ['mapolicy', 'inspect', {str(bundle_file)!r}]\n"
        "(entry,) = entry_points(group='console_scripts', name='mapolicy')\n"
        "try:\n    entry.load()()\n"
        "finally:\n    assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "likeliest" in result.stdout


def test_the_module_runs_too(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mapolicy", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert {"search", "train", "inspect", "slim", "export", "import", "push", "pull", "demo"} <= set(
        result.stdout.split()
    )


def test_a_closed_pipe_is_no_traceback(bundle_file: Path, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mapolicy")
    process = subprocess.Popen(
        [script, "inspect", str(bundle_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert errors == ""


def test_a_closed_stdout_is_no_bug(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mapolicy")
    command = ["bash", "-c", f"{script} operations >&-"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_usage_error_as_a_process(tmp_path: Path) -> None:
    result = run_process("inspect", folder=tmp_path)
    Outcome(result.returncode, result.stdout, result.stderr).is_error(2, "FILE")


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
    assert set(lines) == {"settings", "network", "iterations", "memory", "time"}
    assert "GiB" in lines["memory"]
    document = mapolicy(*arguments, "--dry-run", "--json").json
    assert document["iterations"] == int(lines["iterations"]) == 5
    assert document["seconds"] == pytest.approx(5 * document["seconds_per_iteration"])
    assert set(document) > {"network", "parameters", "memory_bytes"}
    assert snapshot(tmp_path) == []


def test_a_dry_run_is_not_refused_for_what_is_there(mapolicy, tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").write_text("mine")
    outcome = mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--out", "there.safetensors", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert snapshot(tmp_path) == ["there.safetensors"]
    assert (tmp_path / "there.safetensors").read_text() == "mine"


# What there is.

LISTS = {
    "archs": ("shakeshake26_2x96d", "shake-shake"),
    "recipes": ("search-cifar100-wrn28_10", "CIFAR-100"),
    "datasets": ("folder:PATH", "class"),
    "operations": ("Rotate", "degrees"),
}


@pytest.mark.parametrize("what", LISTS)
def test_lists(mapolicy, what: str) -> None:
    name, word = LISTS[what]
    rows = mapolicy(what, "--json").json["rows"]
    found = mapolicy(what, word, "--json").json["rows"]
    assert name in {row["name"] for row in found}
    assert found == [row for row in rows if word.lower() in f"{row['name']} {row['description']}".lower()]
    assert 0 < len(found) < len(rows) == len({row["name"] for row in rows})
    lines = mapolicy(what, word.upper()).out.splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in found]
    for line, row in zip(lines, found, strict=True):
        assert line.endswith(f"  {row['description']}")


def test_what_the_lists_say(mapolicy) -> None:
    assert len(mapolicy("operations", "--json").json["rows"]) == 14
    (rotate,) = mapolicy("operations", "rotate", "--json").json["rows"]
    assert rotate["ranges"]["metaaugment-v1"] == {"at_zero": 0, "at_ten": 30, "signed": True}
    assert rotate["ranges"]["wide"]["at_ten"] == 135
    assert mapolicy("operations", "identity").out == "Identity  no level\n"
    (recipe,) = mapolicy("recipes", "search-cifar10-wrn40_2", "--json").json["rows"]
    assert recipe["target"] == "96.79 +- .06 (5 runs; baseline 94.7)"
    assert recipe["command"].startswith("mapolicy search cifar10 --proxy wrn40_2")
    (vit,) = mapolicy("archs", "vit_tiny_patch16_224", "--json").json["rows"]
    assert (vit["image_size"], vit["fixed_size"]) == (224, True)
    assert mapolicy("archs", "wrn34_7").out.split() == ["wrn34_7", "WRN-34-7;", "for", "32", "pixels"]
    assert mapolicy("archs", "pyramidnet").out.startswith("pyramidnet ")


def test_a_word_that_nothing_has(mapolicy) -> None:
    outcome = mapolicy("archs", "convnex_atto")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith("mapolicy: nothing here has 'convnex_atto' in it; the closest are convnext_atto, ")
    assert mapolicy("archs", "convnex_atto", "--json").json == {"rows": []}


def test_a_short_name_is_its_network(mapolicy) -> None:
    depth = ("--model-arg", "depth=11", "--dry-run", "--json")
    outcome = mapolicy("train", "digits", "--policy", "none", "--arch", "pyramidnet", *SHORT, *depth)
    assert outcome.json["network"] == "pyramidnet272_a200"


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_a_comparison_is_not_for_several_processes(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    mapolicy("compare", "--bundle", "x.safetensors", "--arch", "wrn10_1").is_error(
        2, "compare: was started by a launcher of several processes; start it alone, with --jobs"
    )


def test_of_several_processes_one_says_what_was_typed_wrongly(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for rank in ("0", "1"):
        for name, value in (LAUNCHED | {"RANK": rank}).items():
            monkeypatch.setenv(name, value)
        outcome = mapolicy("search", "digits", "--set", "epochs=-1")
        assert outcome.code == 2
        said.append(len(outcome.err.splitlines()))
    assert said == [1, 0]


# Seeing what was learned.


def test_report_of_a_bundle_and_its_run(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 2\n")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0}\n')
    shown = mapolicy("report", bundle_file, "run", "--out", "r.html", "--samples", "28", "--json")
    assert shown.code == 0, shown.err
    document = shown.json
    page = (tmp_path / "r.html").read_bytes()
    assert document["digest"] == PolicyBundle.load(bundle_file).digest
    assert (document["bytes"], document["samples"]) == (len(page), 28)
    assert document["without_data"] is None, "the digits come with scikit-learn"
    assert b'id="learning"' in page
    mapolicy("report", bundle_file, "--out", "r.html").is_error(2, "r.html: exists", "--force")


def test_report_of_a_dataset_level_policy_with_pictures(mapolicy, tmp_path: Path) -> None:
    mapolicy("import", "randaugment:1,5", "--out", "r.safetensors")
    shown = mapolicy("report", "r.safetensors", "--out", "r.html", "--figures", "pictures")
    assert shown.code == 0, shown.err
    assert snapshot(tmp_path / "pictures") == ["operations.png", "operations.svg"]
    mapolicy("report", "r.safetensors", "--out", "s.html", "--figures", "pictures").is_error(2, "no empty folder")
    assert not (tmp_path / "s.html").exists()


def test_report_refuses_what_it_cannot_show(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    mapolicy("report", "nowhere").is_error(3, "nowhere: No such file")
    mapolicy("report", bundle_file, bundle_file).is_error(2, "2 bundles and 0 run folders")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 2\n")
    mapolicy("report", "run").is_error(3, "metrics.jsonl: No such file")
    mapolicy("report", "run", "--against", bundle_file).is_error(2, "--against: there is no bundle")
    mapolicy("report", "run", "--data-dir", ".").is_error(2, "--data-dir: there is no bundle")
    mapolicy("import", "randaugment:1,5", "--out", "r.safetensors")
    mapolicy("report", "r.safetensors", "--against", bundle_file).is_error(3, "dataset-level")
    assert snapshot(tmp_path) == ["r.safetensors", "run", "run/config.toml"]


def test_a_report_does_without_a_data_set_that_was_not_asked_for(mapolicy, tmp_path: Path, tiny: Path) -> None:
    settings = ("--set", "image_size=16", "--set", "batch_size=4", "--set", "validation_per_class=2", "--epochs", "1")
    searched = mapolicy("search", f"folder:{tiny}/tiny", "--proxy", "wrn10_1", *settings, "--set", "test_per_class=1")
    assert searched.code == 0, searched.err
    shown = mapolicy("report", "artifacts/tiny.safetensors", "--json")
    assert shown.code == 0, shown.err
    assert shown.json["samples"] == 0
    assert "--data-dir" in shown.json["without_data"]
    page = (tmp_path / "report.html").read_text()
    assert "Without the data set" in page
    assert str(tmp_path) not in page
    mapolicy("report", "artifacts/tiny.safetensors", "--data-dir", ".", "--force").is_error(3, "tiny: No such file")
    found = mapolicy("report", "artifacts/tiny.safetensors", "--data-dir", tiny, "--force", "--json")
    assert found.json["samples"] == 6


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "cat.jpg"
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(path)
    return path


def test_explain_ranks_transformations_of_an_image(mapolicy, bundle_file: Path, photo: Path, tmp_path: Path) -> None:
    chosen = ("--transformations", "Rotate:5,Color:-3;Solarize:9;Equalize")
    shown = mapolicy("explain", bundle_file, photo, *chosen, "--out", "cat.png")
    assert shown.code == 0, shown.err
    lines = [
        re.match(r" +(\d) +(\d\.\d{3})  (\w+(?::-?[\d.]+)?, \w+(?::-?[\d.]+)?)", line) for line in shown.out.split("\n")
    ]
    found = [match.groups() for match in lines if match]
    assert [rank for rank, _, _ in found] == ["1", "2", "3"]
    assert sum(float(weight) for _, weight, _ in found) == pytest.approx(3, abs=2e-3)
    assert {text for _, _, text in found} == {"Rotate:5.0, Color:-3.0", "Solarize:9.0, Identity", "Equalize, Identity"}
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.width > picture.height

    document = mapolicy("explain", bundle_file, photo, photo, *chosen, "--json").json
    assert document["digest"] == PolicyBundle.load(bundle_file).digest
    assert len(document["images"]) == 2
    rows = document["images"][0]["transformations"]
    assert [f"{row['weight']:.3f}" for row in rows] == [weight for _, weight, _ in found]


def test_explain_draws_from_p_jk(mapolicy, bundle_file: Path, photo: Path) -> None:
    drawn = [
        mapolicy("explain", bundle_file, photo, "--samples", "5", "--seed", seed, "--json").json for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]["images"][0]["transformations"]) == 5


def test_a_narrow_terminal_loses_the_bars_alone(
    mapolicy, bundle_file: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, bars in (("80", True), ("40", False)):
        monkeypatch.setenv("COLUMNS", width)
        shown = mapolicy("explain", bundle_file, photo, "--transformations", "Rotate:5,Color:-3;Equalize")
        assert "Rotate:5.0, Color:-3.0" in shown.out
        assert ("█" in shown.out) == bars
        assert max(map(len, shown.out.splitlines())) <= int(width)


def test_explain_refuses_what_it_cannot_show(
    mapolicy, bundle_file: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no.png").write_text("no image")
    mapolicy("explain", bundle_file, photo, "no.png", "--out", "x.png").is_error(3, "no.png: is no image")
    with monkeypatch.context() as patch:  # found out before torch is loaded
        patch.setattr(options, "open_bundle", lambda *_: pytest.fail("the bundle was opened first"))
        mapolicy("explain", bundle_file, photo, "nowhere.png").is_error(3, "nowhere.png: No such file")
        mapolicy("explain", bundle_file, tmp_path).is_error(3, "is a folder")
        Path("empty.png").touch()
        mapolicy("explain", bundle_file, "empty.png").is_error(3, "empty.png: is empty")
        Path("empty.png").unlink()
    mapolicy("explain", bundle_file, photo, "--transformations", "Spin:3").is_error(2, "no operation 'Spin'")
    mapolicy("explain", bundle_file, photo, "--out", "x.txt").is_error(2, "does not end in .png or .svg")
    mapolicy("explain", bundle_file, photo, "--samples", 3, "--transformations", "Rotate:1").is_error(2, "leave one")
    mapolicy("import", "randaugment:1,5", "--out", "r.safetensors")
    mapolicy("explain", "r.safetensors", photo).is_error(3, "dataset-level policy: all samples weigh the same")
    assert snapshot(tmp_path) == ["no.png", "r.safetensors"]


def test_explore_serves_until_ctrl_c(
    mapolicy, bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    from mapolicy.report.explore_server import Site

    serve, answers = Site.serve, []

    def visited(site: Site) -> None:
        def visit() -> None:
            try:
                with urllib.request.urlopen(site.address, timeout=20) as answer:
                    answers.append((site.address, answer.read()))
            finally:
                os.kill(os.getpid(), signal.SIGINT)

        visitor = threading.Thread(target=visit)
        visitor.start()
        serve(site)
        visitor.join()

    monkeypatch.setattr(Site, "serve", visited)
    outcome = mapolicy("explore", bundle_file)
    ((address, page),) = answers
    assert (outcome.code, outcome.err) == (0, "mapolicy: reading the data set\n")
    assert f"open     {address}\n" in outcome.out
    assert b"Exploring the policy of digits" in page
    assert snapshot(tmp_path) == []


def test_explore_refuses_what_it_cannot_show(mapolicy) -> None:
    mapolicy("import", "randaugment:1,5", "--out", "r.safetensors")
    mapolicy("explore", "r.safetensors").is_error(3, "dataset-level policy")
    mapolicy("explore", "nowhere").is_error(3, "nowhere: No such file")
