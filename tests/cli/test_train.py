"""`mapolicy train`: with a bundle, with a baseline, and on other data."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_model, save_file

from mapolicy import PolicyBundle
from tests.helpers.command_line import SHORT, TRAIN, save_greys, snapshot
from tests.helpers.image_folders import write_folder


def test_finetune_saves_the_refined_bundle(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    outcome = mapolicy(
        "train", "--bundle", bundle_file, "--mode", "finetune", *TRAIN, "--out", "refined.safetensors", "--json"
    )
    assert outcome.code == 0, outcome.err
    refined = PolicyBundle.load(tmp_path / "refined.safetensors")
    assert outcome.json["refined_digest"] == refined.digest != outcome.json["digest"]
    again = mapolicy("train", "--bundle", bundle_file, "--mode", "finetune", *TRAIN, "--run-dir", "run")
    assert again.code == 0, again.err
    assert re.search(r"^refined bundle +run/refined.safetensors$", again.out, re.M)
    assert PolicyBundle.load(tmp_path / "run" / "refined.safetensors").digest == refined.digest


def test_no_run_is_written_into_somebodys_own_folder(mapolicy, tmp_path: Path) -> None:
    own = {"config.toml": "mine", "network.safetensors": "mine", "notes.txt": "mine"}
    (tmp_path / "mine").mkdir()
    for name, content in own.items():
        (tmp_path / "mine" / name).write_text(content, encoding="utf-8")
    for flags in (("--force",), ("--resume",)):
        outcome = mapolicy("train", "digits", "--policy", "none", *TRAIN, "--run-dir", "mine", *flags)
        outcome.is_error(2, "holds config.toml, which is no run's", "use another --run-dir")
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "mine").iterdir()} == own


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


def test_settings_and_flags_override_the_recipe(mapolicy, tmp_path: Path) -> None:
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


def test_a_recipes_batch_is_fitted_to_a_small_folder(mapolicy, tmp_path: Path) -> None:
    write_folder(tmp_path / "zoo", classes=("a", "b"), per_class=147)  # 220 training images
    command = ("train", "folder:zoo", "--policy", "none", "--arch", "test_resnet", "--epochs", "1", "--dry-run")
    outcome = mapolicy(*command)
    assert outcome.code == 0, outcome.err
    assert re.search(
        r"^batch_size +44: 220 training images make 5 batches an epoch \(--batch-size\)$", outcome.out, re.M
    )
    assert "left out" not in outcome.out
    search = ("search", "folder:zoo", "--epochs", "1", "--no-verify", "--set", "validation_per_class=0.1", "--dry-run")
    assert "44: 220 training images make 5 batches an epoch" in mapolicy(*search).out
    typed = mapolicy(*command, "--batch-size", "128")
    assert re.search(r"^last_batch +keep: 92 of 220 images would be left out \(--set last_batch=\)$", typed.out, re.M)
    assert re.search(r"^few iterations +2 an epoch, 2 in all; --batch-size 44 makes more$", typed.out, re.M)
    refused = mapolicy(*command, "--batch-size", "256")
    refused.is_error(3, "has 220 training images, fewer than batch_size = 256; use --batch-size 44, or add images")
    for batch in ("128", "1000"):
        many = mapolicy(*command, "--batch-size", batch, "--set", "accumulate=1000")
        many.is_error(2, "need 2000 training images, there are 220; lower it, so that there are 110 parts at most")


def test_a_dry_run_says_what_a_start_warns_of(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "greys")
    network = timm.create_model("resnet10t", num_classes=2)
    weights = {name: tensor for name, tensor in network.state_dict().items() if name != "layer4.0.conv2.weight"}
    save_file(weights, tmp_path / "part.safetensors")
    command = (
        "train", "folder:greys", "--policy", "none", "--arch", "resnet10t", "--weights", "part.safetensors",
        "--recipe", "train-any", "--batch-size", "16", "--epochs", "1", "--image-size", "32", "--dry-run",
        "--set", "last_batch=drop",
    )  # fmt: skip
    shown = mapolicy(*command)
    assert shown.code == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "weights part.safetensors; start from random values: layer4.0.conv2.weight" in lines
    assert any(line.startswith("left out 14 of 30 images") for line in lines)
    assert any(line.startswith("feature map 1 x 1 at 32 pixels") for line in lines)
    warnings = mapolicy(*command, "--json").json["warnings"]
    assert list(warnings) == ["weights", "input", "left out", "feature map"]
    assert warnings["input"] == "32 x 32 pixels; the weights were trained on 176 x 176"


def test_a_recipes_warm_up_is_cut_to_the_users_epochs(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "greys")
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "own.safetensors")
    command = (
        "train", "folder:greys", "--policy", "none", "--arch", "test_resnet", "--weights", "own.safetensors",
        "--batch-size", "16", "--image-size", "32", "--epochs", "1", "--run-dir", "run",
    )  # fmt: skip
    assert mapolicy(*command).code == 0
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["warmup_epochs"] == 0
    mapolicy(*command, "--set", "warmup_epochs=1").is_error(2, "1 epochs of warm-up leave nothing of 1 epochs")


def test_a_folder_without_its_prefix_is_noticed(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "d" / "greys")
    refused = mapolicy("train", "d/greys", "--policy", "none", "--arch", "test_resnet")
    refused.is_error(2, "there is none called 'd/greys'; did you mean folder:d/greys?")


def test_another_data_set_than_the_bundles(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    save_greys(tmp_path / "greys", "L")
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


def test_a_refused_run_leaves_the_old_one_as_it_was(mapolicy, tmp_path: Path) -> None:
    run = ("train", "digits", "--policy", "none", "--run-dir", "keep")
    assert mapolicy(*run, *TRAIN).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "keep").iterdir()}
    mapolicy(*run, "--arch", "resnet51", "--force").is_error(2, "resnet51")
    assert {path.name: path.read_bytes() for path in (tmp_path / "keep").iterdir()} == before
    assert mapolicy(*run, *TRAIN, "--force").code == 0


def test_corrupt_images_are_counted_and_listed(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "greys")
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
    ).is_error(3, "class 'dog' is only in the training split")  # fmt: skip
    searched = mapolicy("search", "folder:data/pets", "--dry-run")
    searched.is_error(3, "class 'dog' is only in the training split")
    assert not (tmp_path / "runs").exists()


def test_a_short_name_is_its_network(mapolicy) -> None:
    depth = ("--model-arg", "depth=11", "--dry-run", "--json")
    outcome = mapolicy("train", "digits", "--policy", "none", "--arch", "pyramidnet", *SHORT, *depth)
    assert outcome.json["network"] == "pyramidnet272_a200"


# ---- pretrained networks


def test_advice_is_not_cut(mapolicy, tmp_path: Path) -> None:
    """A long reason, such as torch's own words, is cut instead."""
    tensors = timm.create_model("resnet10t", num_classes=2).state_dict()
    save_file(tensors | {"layer1.0.conv1.weight": torch.zeros(3, 3)}, tmp_path / "odd.safetensors")
    save_greys(tmp_path / "greys")
    outcome = mapolicy(
        "train", "folder:greys", "--policy", "none", "--arch", "resnet10t", "--weights", "odd.safetensors"
    )  # fmt: skip
    outcome.is_error(3, "odd.safetensors: does not fit resnet10t: size mismatch for layer1.0.conv1.weight: ", "...; ")
    assert outcome.err.endswith("; name the network and the --model-arg that it was trained with\n")


@pytest.fixture
def start(tmp_path: Path) -> str:
    """A file of weights for colour images of 12 x 12 pixels and 20 classes, which says so."""
    torch.manual_seed(1)
    about = {"mean": [0.4] * 3, "std": [0.3] * 3, "input_size": [3, 12, 12], "interpolation": "bicubic"}
    tensors = timm.create_model("test_resnet", num_classes=20).state_dict()
    save_file(tensors, tmp_path / "start.safetensors", {"config.json": json.dumps({"pretrained_cfg": about})})
    return "start.safetensors"


def saved(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "run" / "config.toml").read_text())


FEW = ("--epochs", "2", "--set", "batch_size=512", "--set", "base_augmentation=none")


def test_weights_from_a_file_bring_their_input_and_their_recipe(mapolicy, start: str, tmp_path: Path) -> None:
    command = ("train", "digits", "--policy", "none", "--arch", "test_resnet", "--weights", start, "--run-dir", "run")
    outcome = mapolicy(*command, *FEW)
    assert outcome.code == 0, outcome.err
    assert "train-finetune" in outcome.err
    assert "the classifier is new: the weights have 20 classes, the data has 10" in " ".join(outcome.err.split())
    assert "input: 12 x 12 pixels, bicubic, as the weights were trained on (--image-size)" in outcome.err
    settings = saved(tmp_path)
    assert (settings["image_size"], settings["interpolation"], settings["optimizer"]) == (12, "bicubic", "adamw")
    assert not settings["pretrained"]
    assert mapolicy(*command, *FEW, "--force", "--set", "image_size=8", "--freeze").code == 0
    assert (saved(tmp_path)["image_size"], saved(tmp_path)["freeze"]) == (8, True)
    again = mapolicy("train", "--recipe", "run/config.toml", "--run-dir", "again", "--json")
    assert again.code == 0, again.err
    assert tomllib.loads((tmp_path / "again" / "config.toml").read_text()) == saved(tmp_path)


@pytest.mark.filterwarnings("ignore")  # exporters warn
def test_from_local_weights_to_predictions_and_other_programs(mapolicy, tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_folder(tmp_path / "zoo" / part, per_class=8, size=(80, 64))
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=20).state_dict(), tmp_path / "start.safetensors")
    # 56 is 0.875 of 64, the share that is seen after random resized crops.
    own = ("--image-size", "56", "--batch-size", "8", "--epochs", "1", "--set", "validation_per_class=2")
    command = ("train", "folder:zoo", "--arch", "test_resnet", "--weights", "start.safetensors", "--policy", "none")
    trained = mapolicy(*command, *own, "--run-dir", "run", "--json").json
    images = sorted(Path("zoo/test").rglob("*.png"))
    answers = mapolicy("predict", "run", "zoo/test", "--top", "3", "--json").json["images"]
    figures = mapolicy("evaluate", "run", "folder:zoo", "--out", "figures", "--json").json
    assert figures["top1"] == pytest.approx(trained["test_top1"])
    assert mapolicy("export-network", "run", "--to", "torchscript", "--out", "new/zoo.pt").code == 0

    config = json.loads(safe_open("run/network.safetensors", "pt").metadata()["config.json"])
    network = timm.create_model(config["architecture"], pretrained_cfg=config["pretrained_cfg"], **config["model_args"])
    load_model(network.eval(), "run/network.safetensors")
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    with torch.no_grad():
        plain = network(torch.stack([transform(Image.open(path)) for path in images])).softmax(1)
    likeliest = {answer["image"]: answer["classes"][0] for answer in answers}
    for path, row in zip(images, plain, strict=True):
        best = likeliest[str(path)]
        assert row[config["label_names"].index(best["class"])].item() == pytest.approx(best["probability"], abs=1e-5)
    assert torch.jit.load("new/zoo.pt")(torch.zeros(2, 3, 56, 56, dtype=torch.uint8)).shape == (2, 3)


def test_a_run_starts_from_another_runs_network(mapolicy, tmp_path: Path) -> None:
    assert mapolicy("train", "digits", "--policy", "none", *TRAIN, "--run-dir", "first").code == 0
    warm = ("--weights", "first/network.safetensors", "--recipe", "train-digits", "--run-dir", "run", "--json")
    outcome = mapolicy("train", "digits", "--policy", "none", *TRAIN, *warm, "--set", "learning_rate=0.0")
    assert outcome.code == 0, outcome.err
    assert outcome.json["test_top1"] >= 0


def test_pretrained_weights_come_from_the_hub_by_a_tag(mapolicy, hub_server, start: str, tmp_path: Path) -> None:
    hub_server.commit("timm/test_resnet.r160_in1k", {"model.safetensors": (tmp_path / start).read_bytes()})
    command = ("train", "digits", "--policy", "none", "--arch", "test_resnet.r160_in1k", "--run-dir", "run")
    outcome = mapolicy(*command, "--pretrained", *FEW, "--set", "image_size=8")
    assert outcome.code == 0, outcome.err
    assert (saved(tmp_path)["arch"], saved(tmp_path)["pretrained"]) == ("test_resnet.r160_in1k", True)
    hub_server.clear()
    refused = mapolicy(*command[:-1], "other", "--pretrained", *FEW, "--model-arg", "pretrained=true")
    assert refused.code == 2
    assert "use --pretrained" in refused.err


def test_what_is_missing_comes_with_the_whole_command(mapolicy) -> None:
    search = "(or trivialaugment), or learn a policy first: mapolicy search folder:zoo"
    for typed, command in (
        ((), f"mapolicy train folder:zoo --arch resnet18 --policy none {search}"),
        (("--arch", "wrn10_1"), f"mapolicy train folder:zoo --arch wrn10_1 --policy none {search}"),
        (("--policy", "none"), "mapolicy train folder:zoo --policy none --arch resnet18 (`mapolicy archs` has more)"),
        (("--policy", "learned", "--arch", "wrn10_1"), "give --bundle FILE, or --policy for a baseline"),
    ):
        outcome = mapolicy("train", "folder:zoo", *typed)
        outcome.is_error(2)
        assert outcome.err.endswith(f"{command}\n")
    mapolicy("compare", "folder:zoo").is_error(2, "such as --arch resnet18")


def test_weights_are_checked_before_anything_else(mapolicy, tmp_path: Path) -> None:
    usual = "resnet18_of_the_best_run_of_november.pth"
    for name, printed in ((usual, usual), (f"{'very_' * 40}long.pth", "FILE.pth")):
        (tmp_path / name).write_bytes(b"junk")
        outcome = mapolicy("train", "digits", "--policy", "none", "--arch", "test_resnet", "--weights", name)
        assert outcome.err.endswith(f",sys.argv[2])' {printed} weights.safetensors\n"), "the whole command"
    (tmp_path / "old.pth").write_bytes(b"junk")
    for name, why in (("old.pth", "is a pickle"), ("absent.safetensors", "No such file")):
        outcome = mapolicy("train", "digits", "--policy", "none", "--arch", "test_resnet", "--weights", name)
        assert outcome.code in (2, 3)
        assert why in outcome.err
        assert not (tmp_path / "runs").exists()
    both = mapolicy("train", "digits", "--policy", "none", "--arch", "test_resnet", "--weights", "x", "--pretrained")
    assert "one set of weights alone" in both.err
