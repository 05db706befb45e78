"""What a run tells at its end: sentences first, and the next command, typed here as a person would copy it."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
from mapolicy.cli.comparison_table import sentences
from mapolicy.cli.next_command import after_search, command, whether_it_helped, whether_it_helps
from mapolicy.cli.resolve import resolve
from safetensors.torch import save_file

from mapolicy import TrainConfig
from mapolicy.compare.stats import Row, summarise
from tests.helpers.command_line import SHORT, TRAIN, save_greys

FEW = ("--epochs", "1", "--batch-size", "8", "--set", "threads=1")

FOLDER = "Vögel 写真 (2)"  # as people call folders


def told(text: str, name: str) -> list[str]:
    """The words of the command on the line with this name, without `mapolicy` and what the environment has."""
    (line,) = re.findall(rf"^{name} +(?:MAPOLICY_PLUGINS=\S+ )?mapolicy (.+)$", text, re.MULTILINE)
    return shlex.split(line)


def settings_of(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))


def test_the_commands_that_a_search_of_a_folder_tells_run_as_they_are(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "my photos" / FOLDER, size=(12, 10))
    small = ("--image-size", "8", "--set", "cutout=4")
    searched = mapolicy("search", f"folder:my photos/{FOLDER}", "--proxy", "wrn10_1", *FEW, *small, "--no-verify")
    assert searched.code == 0, searched.err
    assert searched.out.startswith("The search is done. Whether training with its policy helps was not checked")
    own = ("--image-size", "12", "--seed", "3", "--set", "label_smoothing=0.1", "--set", "on_divergence=rollback")
    trained = mapolicy(*told(searched.out, "next"), *own)
    assert trained.code == 0, trained.err
    assert re.match(
        r"wrn10_1, trained with policy learned, frozen, is right about \d+\.\d % of 6 test images "
        r"\(95 % interval \d+\.\d to \d+\.\d ",
        trained.out,
    )
    compare = told(trained.out, "whether it helped")
    assert compare[:2] == told(searched.out, "whether it helps")[:2] == ["compare", f"folder:my photos/{FOLDER}"]
    compare[compare.index("--seeds") + 1] = "1"
    compared = mapolicy(*compare, "--against", "none")
    assert compared.code == 0, compared.err
    (same,) = (tmp_path / "runs").glob("compare-*/wrn10_1/learned/*-seed3")
    (first,) = (tmp_path / "runs").glob("train-*")
    assert settings_of(same) == settings_of(first)
    assert re.match(r"wrn10_1: learned is .*the best policy without a search \(no interval from 1 seed", compared.out)


def test_settings_that_were_given_are_in_the_next_command(mapolicy) -> None:
    outcome = mapolicy(
        "search",
        "digits",
        "--proxy",
        "wrn10_1",
        *SHORT,
        "--lr",
        "0.05",
        "--model-arg",
        "drop_rate=0.5",
        "--device",
        "cpu",
    )
    words = told(outcome.out, "next")
    pairs = dict(zip(words[1::2], words[2::2], strict=False))
    assert pairs["--arch"] == "wrn10_1"
    assert pairs["--model-arg"] == "drop_rate=0.5"
    assert pairs["--batch-size"] == "64"
    assert pairs["--lr"] == "0.05"
    assert pairs["--device"] == "cpu"
    assert "digits" not in words  # the bundle names it
    assert (
        mapolicy("search", "digits", "--proxy", "wrn10_1", *SHORT, "--json", "--force")
        .json["next"]
        .startswith("mapolicy train --bundle artifacts/digits.safetensors --arch wrn10_1")
    )


def test_weights_that_see_the_training_loss_go_on_learning(make_search_config) -> None:
    config = make_search_config(policy_input="loss")
    given: dict[str, object] = {}
    assert "--mode finetune" in after_search(config, Path("b.safetensors"), given)
    assert "--mode finetune" in whether_it_helps(config, Path("b.safetensors"), given)
    assert "--mode" not in after_search(config, Path("b.safetensors"), given, "uniform")
    assert "--mode" not in whether_it_helps(make_search_config(), Path("b.safetensors"), given)


def test_what_a_plugin_adds_is_in_front_of_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("data", "folder:my photos") == "mapolicy data 'folder:my photos'"
    monkeypatch.setenv("MAPOLICY_PLUGINS", "my_operations,my_data")
    assert command("data", "x") == "MAPOLICY_PLUGINS=my_operations,my_data mapolicy data x"


def test_a_training_from_weights_is_compared_from_the_same_weights(tmp_path: Path) -> None:
    weights = str(tmp_path / "start.safetensors")
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), weights)
    options: dict[str, Any] = {
        "weights": weights,
        "epochs": 3,
        "balance": "loss",
        "mode": "finetune",
        "last_batch": "drop",
    }
    config, recipe = resolve(TrainConfig, "test_resnet", "folder:a b", flags=options)
    assert recipe == "recipe train-finetune"
    words = shlex.split(whether_it_helped(config, "b.safetensors", {}, None, ["pixels=9"]))
    assert words[:4] == ["mapolicy", "compare", "folder:a b", "--bundle"]
    for part in (["--mode", "finetune"], ["--limit", "pixels=9"], ["--weights", weights], ["--set", "last_batch=drop"]):
        assert part in [words[at : at + 2] for at in range(len(words))], part
    assert not {"--lr", "--batch-size", "--image-size", "optimizer=adamw"} & {*words}, "the recipe has them"
    named = shlex.split(whether_it_helped(config, "b.safetensors", {}, "train-finetune", []))
    assert named[named.index("--recipe") + 1] == "train-finetune"


def test_a_baseline_tells_no_comparison(mapolicy) -> None:
    outcome = mapolicy("train", "digits", "--policy", "none", *TRAIN)
    assert outcome.out.startswith("test_resnet, trained with policy none, is right about ")
    assert "whether it helped" not in outcome.out
    assert outcome.out.index("network.safetensors") < outcome.out.index("\ndetails\n") < outcome.out.index("test top-1")


def rows(policy: str, *accuracies: float) -> list[Row]:
    mode = "frozen" if policy == "learned" else None
    return [
        Row("resnet18", policy, mode, seed, "b", 1, top1, 99.0, 1000, 1.0, 1.0) for seed, top1 in enumerate(accuracies)
    ]


BEST = "uniform, the best policy without a search"


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        ((95.0, 95.5, 95.5), f"is 5.0 points above {BEST} (95 % interval +4.8 to +5.2 over 3 seeds)"),
        (
            (91.0, 92.0, 93.5),
            f"is 1.8 points above {BEST} (95 % interval -0.6 to +4.2 over 3 seeds; this may be chance)",
        ),
        (
            (89.0, 90.0, 91.5),
            f"is 0.2 points below {BEST} (95 % interval -2.6 to +2.2 over 3 seeds; this may be chance)",
        ),
        ((90.0, 90.5, 90.5), f"is as good as {BEST} (95 % interval -0.2 to +0.2 over 3 seeds; this may be chance)"),
        ((95.0,), f"is 5.0 points above {BEST} (no interval from 1 seed; this may be chance)"),
    ],
)
def test_a_comparison_begins_with_a_sentence(learned: tuple[float, ...], said: str) -> None:
    found = rows("learned", *learned) + rows("uniform", 90.0, 90.4, 90.6) + rows("none", 80.0, 81.0, 82.0)
    assert sentences(summarise(found)) == [f"resnet18: learned {said}"]
