"""`mapolicy compare`: the table, failed runs and wrong options."""

import os
import re
from pathlib import Path

import pytest

from mapolicy import PolicyBundle
from tests.helpers.command_line import LAUNCHED, SHORT, TRAIN, snapshot

COMPARE = ("compare", "--arch", "test_resnet", "--against", "none,uniform", *SHORT)


def test_compare_prints_a_table_and_goes_on(mapolicy, bundle_file: Path, bundle: PolicyBundle, tmp_path: Path) -> None:
    command = (*COMPARE, "--bundle", bundle_file, "--run-dir", "run")
    first = mapolicy(*command, "--seeds", "1", "--mode", "frozen, finetune")
    assert first.code == 0, first.err
    for text in ("learned, finetune", "uniform", "to best baseline", "no interval", "269 images", bundle.digest[:12]):
        assert text in first.out
    assert "test_resnet: settings from recipe train-digits" in first.err
    assert re.search(r"4 of 4: test_resnet, uniform, \w+-seed0: \d+\.\d\d % test top-1; 0:00 left", first.err)
    mapolicy(*command, "--seeds", "2").is_error(2, "holds a comparison", "--resume")
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
        (("--bundle", "BUNDLE", "--arch", "wrn11_2"), ("closest are wrn",)),
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
    assert "│ listed " in compared.out
    assert f"dataset-level-{listed}" not in compared.out
    assert f"{listed} (RandAugment, N 2, M 9 of 30" in compared.out
    mapolicy(*COMPARE, "--bundle", bundle_file, "--expect-digest", "0" * 64).is_error(3, bundle.digest[:12])
    mapolicy(*COMPARE, "--bundle", "missing.safetensors").is_error(3, "missing.safetensors")


@pytest.mark.parametrize("command", [(*COMPARE, "--seeds", "1"), ("train", *TRAIN)], ids=["compare", "train"])
def test_another_data_set_than_the_bundles_is_refused_before_it_is_downloaded(
    mapolicy, bundle_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]
) -> None:
    asked = []

    def ask(url: str, **_) -> None:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", ask)
    outcome = mapolicy(*command[:1], "cifar10", *command[1:], "--bundle", bundle_file, "--quiet")
    outcome.is_error(3, "cifar10: is not the bundle's data set, which is digits, and would have to be downloaded")
    assert asked == []
    assert not (tmp_path / "data").exists()


def test_a_comparison_is_not_for_several_processes(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    mapolicy("compare", "--bundle", "x.safetensors", "--arch", "wrn10_1").is_error(
        2, "compare: was started by a launcher of several processes; start it alone, with --jobs"
    )


def test_compare_against_policies_that_are_imported(mapolicy, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("[[('Rotate', 0.5, 0.9)], [('Invert', 0.2, 0.0)]]")
    (tmp_path / "schedule.json").write_text('[[1, []], [1, [["Rotate", 0.5, 9]]]]')
    mapolicy("import", "schedule.json", "--out", "pba.safetensors")
    against = "none,randaugment:1,3, list.txt,pba.safetensors"
    command = ("compare", "digits", "--arch", "test_resnet", *SHORT, "--seeds", "1", "--epochs", "1")
    outcome = mapolicy(*command, "--against", against, "--json", "--quiet", "--run-dir", "run")
    assert outcome.code == 0, outcome.err
    assert len(outcome.json["rows"]) == 4
    sources = {found["source"] for found in outcome.json["bundles"]}
    assert sources == {
        next(each for each in sources if each.startswith("RandAugment, N 1, M 3")),
        "list of 2 sub-policies",
        "Population Based Augmentation, schedule of a file",
    }


def test_no_comparison_is_written_into_somebodys_own_folder(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "letters").mkdir(parents=True)
    for flags in ((), ("--force",), ("--resume",)):
        outcome = mapolicy(*COMPARE, "--bundle", bundle_file, "--run-dir", "mine", *flags)
        outcome.is_error(2, "mine: holds letters, which is no comparison's; use another --run-dir")
    assert snapshot(tmp_path) == ["mine", "mine/letters"]


def test_compare_against_a_searched_bundle_is_a_wrong_option(mapolicy, bundle_file: Path) -> None:
    against = ("--against", f"none,{bundle_file}")
    mapolicy("compare", "--bundle", bundle_file, "--arch", "test_resnet", *against).is_error(2, "--bundle")


def test_a_dry_run_says_how_many_trainings_and_how_long(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    command = (*COMPARE, "--bundle", bundle_file, "--run-dir", "run", "--mode", "frozen,finetune", "--seeds", "3")
    outcome = mapolicy(*command, "--dry-run")
    assert outcome.code == 0, outcome.err
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert lines[0] == "trainings 12: 1 network x 4 policies x 3 seeds"
    assert re.fullmatch(r"time about \d+ seconds? in all", lines[1])
    assert lines[6].startswith("test_resnet: feature map 1 x 1")
    assert re.fullmatch(r"test_resnet, learned-finetune 3 x 5 iterations, about \d+ seconds? each", lines[3])
    assert snapshot(tmp_path) == []
    document = mapolicy(*command, "--dry-run", "--json", "--jobs", "2").json
    assert (document["trainings"], document["at_a_time"]) == (12, min(2, len(os.sched_getaffinity(0))))
    each = [
        document["loading_seconds"] + row["iterations"] * row["seconds_per_iteration"] + row["evaluation_seconds"]
        for row in document["rows"]
    ]
    assert all(row["evaluation_seconds"] > 0 for row in document["rows"])
    assert document["seconds"] == pytest.approx(3 * sum(each) / document["at_a_time"])
