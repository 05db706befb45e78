"""A run's folder: what stands in it after anything."""

import json
from pathlib import Path

import pytest
import torch

from mapolicy.errors import InputError, UsageError
from mapolicy.runtime.files import CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE
from mapolicy.training.checkpoint import load_checkpoint
from mapolicy.training.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path, make_train_config) -> RunFolder:
    """With three lines in its log, and checkpoints after the first two."""
    found = RunFolder(tmp_path / "run")
    found.check(False, False)
    found.begin(make_train_config())
    for number in (1, 2, 3):
        found.log({"iteration": number})
        if number < 3:
            found.save({"x": torch.full((3,), float(number))}, {"iteration": number})
    return found


def newest(folder: RunFolder) -> tuple[float, str]:
    tensors, facts, told = folder.load()
    assert float(tensors["x"][0]) == facts["iteration"] == facts["lines"]
    return facts["iteration"], told


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_the_newest_checkpoint_is_taken_and_the_log_cut_to_it(folder: RunFolder, make_train_config) -> None:
    assert newest(folder) == (2, "")
    assert folder.go_on(make_train_config(), 2) == [{"iteration": 1}, {"iteration": 2}]
    folder.log({"iteration": 3})
    assert folder.path is not None
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["cut", "first", "facts", "last", "pickle"])
def test_a_damaged_one_gives_way_to_the_one_before(folder: RunFolder, damage: str) -> None:
    assert folder.path is not None
    path = folder.path / CHECKPOINT_FILE
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "first":
            flip(path, 0)
        case "facts":
            flip(path, path.read_bytes().index(b"iteration") + len('iteration\\": '))  # 2 becomes 3
        case "last":
            flip(path, -3)
        case "pickle":
            torch.save({"x": torch.ones(3)}, path)
    iteration, told = newest(folder)
    assert iteration == 1
    assert "no whole checkpoint" in told
    assert "falls back to checkpoint-previous.safetensors" in told
    assert not path.exists(), "or the next save would put it in the good one's place"
    folder.save({"x": torch.full((3,), 3.0)}, {"iteration": 3})
    path.unlink()
    assert newest(folder) == (1, ""), "the good one has stayed"


def test_no_whole_checkpoint_is_never_a_start_from_zero(folder: RunFolder) -> None:
    assert folder.path is not None
    for name in (CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE):
        flip(folder.path / name, -1)
    with pytest.raises(InputError, match=r"no whole checkpoint .*digest is another.*--force"):
        folder.load()
    assert (folder.path / PREVIOUS_CHECKPOINT_FILE).exists()


def test_a_folder_or_a_bundle_in_its_place_is_named(folder: RunFolder, bundle_file: Path) -> None:
    assert folder.path is not None
    path = folder.path / CHECKPOINT_FILE
    path.write_bytes(bundle_file.read_bytes())
    assert "it has no digest, so it is no run's" in folder.load()[2]
    path.mkdir()
    with pytest.raises(InputError, match="is a folder"):
        folder.load()
    assert path.is_dir()


def test_killed_between_two_names(folder: RunFolder) -> None:
    assert folder.path is not None
    (folder.path / CHECKPOINT_FILE).unlink()
    folder.check(resume=True, overwrite=False)
    assert newest(folder) == (1, "")
    assert folder.checkpoint() == folder.path / PREVIOUS_CHECKPOINT_FILE


def test_the_log_is_on_the_disk_before_the_checkpoint_that_counts_its_lines(folder: RunFolder, monkeypatch) -> None:
    order: list[str] = []
    monkeypatch.setattr("mapolicy.training.run_folder.sync", lambda path: order.append(path.name))
    monkeypatch.setattr("mapolicy.training.run_folder.save_checkpoint", lambda path, *_: order.append(path.name))
    folder.save({}, {})
    assert order == ["metrics.jsonl", "checkpoint.safetensors"]


def test_what_was_killed_while_writing_leaves_no_litter(folder: RunFolder, make_train_config) -> None:
    assert folder.path is not None
    (folder.path / ".checkpoint.safetensors.0123abcd.tmp").write_bytes(b"half")
    (folder.path / ".somebody-elses.tmp").write_bytes(b"")
    folder.go_on(make_train_config(), 2)
    assert [path.name for path in folder.path.glob(".*")] == [".somebody-elses.tmp"]


def test_refusals(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a run"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=False, overwrite=True)
    RunFolder(tmp_path / "none").check(resume=True, overwrite=False)  # a run that was stopped before it began
    assert not (tmp_path / "none").exists()
    for number, made in enumerate(("cat.jpg", "animals/cat.jpg", "config.toml", "comparison.json")):
        folder_of_photos = tmp_path / f"photos{number}"
        (folder_of_photos / made).parent.mkdir(parents=True)
        (folder_of_photos / made).write_bytes(b"")
        for resume, overwrite in ((True, False), (False, True), (True, True), (False, False)):  # nor with --force
            odd = made.partition("/")[0]
            with pytest.raises(UsageError, match=rf"holds {odd}, which is no run's; use another --run-dir"):
                RunFolder(folder_of_photos).check(resume=resume, overwrite=overwrite)


def test_a_run_that_was_stopped_early_may_be_replaced(tmp_path: Path, make_train_config) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(make_train_config())
    (tmp_path / "run" / "tensorboard").mkdir()
    folder.check(resume=False, overwrite=True)


def test_without_a_path_nothing_is_written(make_train_config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(None)
    folder.check(resume=False, overwrite=False)
    folder.begin(make_train_config())
    folder.log({"iteration": 1})
    folder.save({"x": torch.ones(1)}, {})
    folder.write_status({})
    folder.write_result({})
    assert folder.go_on(make_train_config(), 0) == []
    assert folder.checkpoint() is None
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_checkpoint_that_was_there(folder: RunFolder, monkeypatch) -> None:
    assert folder.path is not None
    before = (folder.path / CHECKPOINT_FILE).read_bytes()

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(Exception, match=r"No space left on device \(\d+ bytes needed, \d+ free\)"):
        folder.save({"x": torch.ones(3)}, {"iteration": 9})
    monkeypatch.undo()
    assert (folder.path / CHECKPOINT_FILE).read_bytes() == before
    assert load_checkpoint(folder.path / CHECKPOINT_FILE)[1]["iteration"] == 2
    assert not list(folder.path.glob(".*.tmp"))
