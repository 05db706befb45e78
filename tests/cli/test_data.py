"""`mapolicy data`, what runs say of their data at the start, and where a bundle's folder is found."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from mapolicy.cli.data_folder import dataset_slug, with_fitting_batches

from tests.helpers.command_line import SHORT, snapshot
from tests.helpers.image_folders import write_folder

SIZES = ("--set", "train_per_class=5", "--set", "validation_per_class=2", "--set", "test_per_class=3")
SMALL = (*SHORT, *SIZES, "--set", "batch_size=5", "--image-size", "8", "--set", "validation_batch_size=4")
SEARCH = ("--proxy", "wrn10_1", "--no-verify", *SMALL)


def test_data_says_what_a_run_would_use(mapolicy, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", size=(60, 20))
    (root / "ant" / "notes.txt").write_text("x")
    (root / "__MACOSX").mkdir()
    before = snapshot(tmp_path)
    outcome = mapolicy("data", "folder:zoo", *SIZES, "--batch-size", "128")
    assert (outcome.code, outcome.err) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    for expected in (
        "classes 3",
        "images 36: 15 training, 6 meta-validation, 9 testing, 6 unused",
        "size 60 x 20 (median), used at 20 x 20; sides 20 to 60",  # as a search chooses
        "formats 27 PNG",
        "pixels 27 RGB; read as colour",
        "class training meta-validation testing unused",
        "ant 5 2 3 2",
        "not used: 2 files and folders",
        "__MACOSX/: left by another program",
        "ant/notes.txt: .txt is not the ending of an image format",
        "likely trouble",
        "15 training images are fewer than batch_size = 128: use --batch-size 15",
    ):
        assert expected in lines, expected
    assert any("--resize pad or --resize squash" in line for line in lines)
    assert snapshot(tmp_path) == before
    assert "batches of" not in mapolicy("data", "folder:zoo", *SIZES).out, "a search fits them"
    document = mapolicy("data", "folder:zoo", *SIZES, "--json").json
    assert document["images"]["training"] == 15
    assert [each["path"] for each in document["left_out"]] == ["__MACOSX/", "ant/notes.txt"]
    assert mapolicy("data", "digits").code == 0
    why = "there is no folder none here and none in data"
    for command in (("data",), ("train", "--policy", "none", "--arch", "wrn10_1")):
        mapolicy(command[0], "folder:none", *command[1:]).is_error(3, f"folder:none: {why}; name folder:PATH")
    mapolicy("data", "folder:some/where").is_error(3, "some/where: No such file")


def test_the_networks_of_a_comparison_have_equal_batches(tmp_path: Path, make_train_config) -> None:
    write_folder(tmp_path / "zoo", per_class=80)  # 180 training images
    own = {"dataset": "folder:zoo", "data_dir": str(tmp_path), "train_per_class": 60.0, "batch_size": 128}
    configs = [make_train_config(**own, arch=arch) for arch in ("wrn10_1", "test_resnet")]
    recipe = "recipe train-any"
    found, chosen = with_fitting_batches(configs, [recipe, recipe], (), learns=False)
    assert [config.batch_size for config in found] == [36, 36]
    assert list(chosen) == ["batch_size"]
    assert with_fitting_batches(configs, ["mine.toml", "mine.toml"], (), learns=False) == (configs, {})
    found, _ = with_fitting_batches(configs, [recipe, recipe], ("batch_size",), learns=True)
    assert {(config.batch_size, config.last_batch) for config in found} == {(128, "drop")}


def test_damaged_files_are_in_no_count(mapolicy, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "zoo", per_class=40)
    for path in sorted(root.glob("*/0*.png"))[::9]:
        path.write_bytes(path.read_bytes()[:-40])
    number = r"\b(\d+) training\b"
    skip = ("--skip-corrupt", "--set", "validation_per_class=0.1", "--set", "test_per_class=0.1")
    looked = mapolicy("data", "folder:zoo", *skip)
    (found,) = set(re.findall(number, looked.out))
    assert int(found) < 3 * 32, "some are left out"
    for command in (("search",), ("train", "--policy", "none", "--arch", "test_resnet")):
        outcome = mapolicy(command[0], "folder:zoo", *command[1:], *skip, "--epochs", "1", "--dry-run")
        assert outcome.code == 0, outcome.err
        assert set(re.findall(number, outcome.out + outcome.err)) == {found}, outcome.out
        assert re.search(r"left out \d+ images that cannot be decoded: ant/00.png: ", outcome.err), outcome.err


def test_a_damaged_test_image_is_found_before_a_training(mapolicy, tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_folder(tmp_path / "zoo" / part)
    half = tmp_path / "zoo" / "test" / "bee" / "03.png"
    half.write_bytes(half.read_bytes()[:-60])
    train = ("train", "folder:zoo", "--policy", "none", "--arch", "test_resnet", *SMALL)
    for more in ((), ("--dry-run",)):
        outcome = mapolicy(*train, *more)
        assert outcome.code == 3
        assert re.search(
            r"zoo/test/bee/03.png: cannot be decoded .*; mend or remove it, or use --skip-corrupt$", outcome.err
        )
        assert not (tmp_path / "runs").exists(), "before the first iteration"
    assert mapolicy(*train, "--skip-corrupt").code == 0


def test_copies_across_splits_are_said_at_every_start(mapolicy, tmp_path: Path) -> None:
    train = write_folder(tmp_path / "zoo" / "train")
    for path in train.glob("*/0[0-3].png"):
        copy = tmp_path / "zoo" / "test" / path.relative_to(train)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    said = "12 images are in several splits"
    few = (*SMALL, "--set", "train_per_class=0", "--dry-run")
    assert said in mapolicy("data", "folder:zoo", "--set", "validation_per_class=2").out
    for command in (("search",), ("train", "--policy", "none", "--arch", "test_resnet")):
        outcome = mapolicy(command[0], "folder:zoo", *command[1:], *few)
        assert outcome.code == 0, outcome.err
        assert said in outcome.err
        assert "train/ant/00.png (" in outcome.err
        assert "test/ant/00.png (testing)" in outcome.err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_runs_say_at_the_start_what_they_found(mapolicy, tmp_path: Path, dry: tuple[str, ...]) -> None:
    root = write_folder(tmp_path / "zoo", size=(60, 20))
    (root / "ant" / "notes.txt").write_text("x")
    outcome = mapolicy("search", "folder:zoo", *SEARCH, *dry)
    assert outcome.code == 0, outcome.err
    assert "1 files and folders are not used: 1 .txt is not the ending of an image format" in outcome.err
    assert "--resize pad or --resize squash keeps all of it" in outcome.err
    if dry:
        assert "--resize" not in mapolicy("search", "folder:zoo", *SEARCH, "--resize", "pad", *dry).err


def test_kept_images_are_announced_reused_and_cleared(mapolicy, tmp_path: Path) -> None:
    write_folder(tmp_path / "zoo", size=(40, 30))
    crops = ("base_augmentation=random_resized_crop", "keep_images=whole", "memory_limit_gib=0", "cache_dir=cache")
    settings = [part for text in crops for part in ("--set", text)]
    train = ("train", "folder:zoo", "--policy", "none", "--arch", "test_resnet", *SMALL, *settings)
    digests = []
    for run in ("a", "b"):
        outcome = mapolicy(*train, "--run-dir", run)
        assert outcome.code == 0, outcome.err
        said = "`mapolicy data folder:zoo --clear-cache --set cache_dir=cache` removes them"
        assert said in " ".join(outcome.err.split()), outcome.err
        digests.append((tmp_path / run / "network.safetensors").read_bytes())
    assert digests[0] == digests[1]
    kept = list((tmp_path / "cache" / "kept-images").glob("*.images"))
    assert kept
    cleared = mapolicy("data", "folder:zoo", "--clear-cache", "--set", "cache_dir=cache", "--json")
    assert cleared.json["files"] == len(kept)
    assert not list((tmp_path / "cache" / "kept-images").glob("*.images"))
    again = mapolicy("data", "folder:zoo", "--clear-cache", "--set", "cache_dir=cache")
    assert "0 files of kept images, 0 bytes" in again.out
    # A forecast writes none, and a folder that is gone can still be cleared.
    forecast = mapolicy(*train, "--dry-run")
    assert said in " ".join(forecast.err.split())
    assert not list((tmp_path / "cache" / "kept-images").glob("*.images"))
    assert mapolicy(*train, "--run-dir", "d").code == 0
    (tmp_path / "zoo").rename(tmp_path / "other")
    gone = mapolicy("data", "folder:zoo", "--clear-cache", "--set", "cache_dir=cache", "--json")
    assert gone.json["files"] == len(kept)
    (tmp_path / "other").rename(tmp_path / "zoo")
    # Of a folder in data_dir the command says where that is, and it works when the folder is gone.
    (tmp_path / "all my data").mkdir()
    (tmp_path / "zoo").rename(tmp_path / "all my data" / "zoo")
    elsewhere = mapolicy(*train, "--data-dir", "all my data", "--run-dir", "e")
    assert elsewhere.code == 0, elsewhere.err
    typed = ("data", "folder:zoo", "--data-dir", "all my data", "--clear-cache", "--set", "cache_dir=cache")
    assert f"`mapolicy {shlex.join(typed)}` removes them" in " ".join(elsewhere.err.split())
    (tmp_path / "all my data" / "zoo").rename(tmp_path / "zoo")
    (tmp_path / "zoo").rename(tmp_path / "other")
    assert mapolicy(*typed, "--json").json["files"] == len(kept)
    (tmp_path / "other").rename(tmp_path / "zoo")
    # In memory the network is the same.
    assert mapolicy(*train, "--run-dir", "c", "--set", "memory_limit_gib=1").code == 0
    assert (tmp_path / "c" / "network.safetensors").read_bytes() == digests[0]
    assert not list((tmp_path / "cache" / "kept-images").glob("*.images"))


def test_a_run_goes_on_with_another_way_to_the_same_crops(mapolicy, tmp_path: Path) -> None:
    """memory, whole and off give the same crops, and small copies others."""
    write_folder(tmp_path / "zoo", size=(40, 30))
    train = ("train", "folder:zoo", "--policy", "none", "--arch", "test_resnet", *SMALL)
    train = (*train, "--set", "base_augmentation=random_resized_crop", "--run-dir", "a", "--epochs", "2")
    assert mapolicy(*train).code == 0
    expected = (tmp_path / "a" / "network.safetensors").read_bytes()
    for value in ("off", "whole"):
        assert mapolicy(*train, "--set", f"keep_images={value}", "--resume").code == 0
        assert (tmp_path / "a" / "network.safetensors").read_bytes() == expected
    small = mapolicy(*train, "--set", "keep_images=small", "--resume")
    assert small.code == 3
    assert "keep_images 'memory' -> 'small'; undo the changes" in small.err


def test_keep_images_that_does_nothing_is_said(mapolicy, tmp_path: Path) -> None:
    write_folder(tmp_path / "zoo", size=(40, 30))
    train = ("train", "folder:zoo", "--policy", "none", "--arch", "test_resnet", *SMALL, "--dry-run")
    told = mapolicy(*train, "--set", "keep_images=whole").err
    assert "keep_images=whole does nothing here: only random resized crops" in " ".join(told.split())
    assert "keep_images" not in mapolicy(*train).err


def test_one_level_too_high_is_refused_with_the_folder_and_a_flag(mapolicy, tmp_path: Path) -> None:
    write_folder(tmp_path / "repository" / "Dataset")
    write_folder(tmp_path / "repository" / "Other", classes=("x", "y"), per_class=12)
    refused = mapolicy("search", "folder:repository", *SEARCH)
    refused.is_error(3, "use folder:repository/Dataset", "--nested-classes")
    assert mapolicy("search", "folder:repository", *SEARCH, "--nested-classes").code == 0
    # The bundle knows that the class folders are meant.
    again = ("--arch", "wrn10_1", "--set", "batch_size=5", "--epochs", "1", "--set", "threads=1")
    assert mapolicy("train", "folder:repository", "--bundle", "artifacts/repository.safetensors", *again).code == 0


# ---- where a bundle's folder is


def test_a_bundles_folder_is_found_through_the_search_or_the_command_is_printed(mapolicy, tmp_path: Path) -> None:
    write_folder(tmp_path / "photos" / "zoo")
    assert mapolicy("search", "folder:photos/zoo", *SEARCH).code == 0
    train = ("train", "--bundle", "artifacts/zoo.safetensors", "--arch", "wrn10_1")
    run = ("--epochs", "1", "--set", "threads=1", "--set", "batch_size=5")
    outcome = mapolicy(*train, *run)
    assert outcome.code == 0, outcome.err
    assert "data set: photos/zoo, from runs/search-zoo-wrn10_1-seed0/config.toml" in outcome.err
    shutil.rmtree("runs")
    mapolicy(*train).is_error(
        3,
        "folder:zoo: the bundle has the folder's name, not its place",
        "type mapolicy train folder:PATH/zoo --bundle artifacts/zoo.safetensors --arch wrn10_1",
    )
    assert mapolicy("train", "folder:photos/zoo", *train[1:], *run).code == 0


def test_folders_of_one_name_have_bundles_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def name_and_run(dataset: str) -> str:
        """The name for a data set's bundle and run; then the run is there."""
        name = dataset_slug(dataset, "data")
        run = Path("runs") / f"search-{name}-wrn10_1-seed0"
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.toml").write_text(f'dataset = "{dataset}"\ndata_dir = "data"\n')
        return name

    for dataset, expected in (
        ("folder:signs/Dataset", "Dataset"),
        ("folder:birds/Dataset", "birds-Dataset"),
        ("folder:signs/Dataset", "Dataset"),  # as with --resume
        (f"folder:{tmp_path}/birds/Dataset/", "birds-Dataset"),
        ("folder:signs/Dataset-small", "Dataset-small"),
        ("folder:Dataset", "data-Dataset"),  # in data_dir
        ("cifar10", "cifar10"),
        ("hfds/somebody/birds", "birds"),
    ):
        assert name_and_run(dataset) == expected, dataset
    hashed = name_and_run("folder:other/birds/Dataset")
    assert re.fullmatch("Dataset-[0-9a-f]{6}", hashed)
    assert name_and_run("folder:other/birds/Dataset") == hashed


def test_resume_without_a_checkpoint_starts_from_the_beginning(mapolicy, tmp_path: Path) -> None:
    write_folder(tmp_path / "zoo")
    first = mapolicy("search", "folder:zoo", *SEARCH, "--resume")
    assert first.code == 0, first.err
    assert "has no checkpoint yet: starts from the beginning" in first.err
    bundle = Path("artifacts/zoo.safetensors").read_bytes()
    folder = Path("runs/search-zoo-wrn10_1-seed0")
    for path in folder.glob("checkpoint*"):
        path.unlink()
    again = mapolicy("search", "folder:zoo", *SEARCH, "--resume", "--force")
    assert again.code == 0, again.err
    assert "has no checkpoint yet: starts from the beginning" in again.err
    assert Path("artifacts/zoo.safetensors").read_bytes() == bundle
