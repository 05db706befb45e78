"""A network on a labelled data set: which images are used, and the figures that training reported."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from mapolicy import TrainedNetwork, TrainResult, load_network, train_network
from mapolicy.bundle import canonical_json
from mapolicy.data.dataset_factory import open_source
from mapolicy.errors import InputError
from mapolicy.inference.evaluate import ALL, HELD_OUT, LEARNED, OWN_TEST, evaluate_network, images_to_evaluate
from mapolicy.inference.network_config import read_config
from tests.helpers.command_line import save_greys

DATA = Path("data")


@pytest.fixture(scope="module")
def network(trained_run: Path) -> TrainedNetwork:
    return load_network(trained_run)


@pytest.fixture(scope="module")
def greys(make_train_config, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedNetwork, TrainResult, Path]:
    """A network that tells dark from light, and the folder that it was trained on."""
    folder = tmp_path_factory.mktemp("greys")
    save_greys(folder / "greys")
    config = make_train_config(
        policy="none", dataset=f"folder:{folder / 'greys'}", epochs=2, batch_size=8, train_per_class=0,
        validation_per_class=4, test_per_class=4,
    )  # fmt: skip
    result = train_network(config, run_dir=folder / "run")
    return load_network(folder / "run"), result, folder


def test_it_finds_the_test_images_of_the_training(network: TrainedNetwork, trained_result) -> None:
    result: TrainResult = trained_result[0]
    chosen = images_to_evaluate(open_source("digits", DATA), network)
    assert chosen.what == HELD_OUT
    seen: list[int] = []
    found = evaluate_network(network, chosen, batch_size=100, on_progress=seen.append)
    assert found.evaluation.images == result.test.images
    assert found.evaluation.top1 == pytest.approx(result.test_top1)
    assert found.evaluation.balanced_accuracy == pytest.approx(result.test.balanced_accuracy)
    assert found.evaluation.calibration_error == pytest.approx(result.test.calibration_error, abs=1e-3)
    assert sum(map(sum, found.confusion())) == result.test.images
    assert seen == [100, 200, result.test.images]
    for label, row in enumerate(found.confusion()):
        assert 100 * row[label] / sum(row) == pytest.approx(found.evaluation.classes[label].recall)


def test_weights_that_training_chose_are_the_ones_that_are_kept(make_train_config, tmp_path: Path) -> None:
    """The moving average or the best epoch: what was measured, returned and saved is one network."""
    for changes in ({"ema_decay": 0.9}, {"early_stopping": 1}):
        config = make_train_config(policy="none", epochs=3, batch_size=128, learning_rate=0.3, **changes)
        folder = tmp_path / next(iter(changes))
        result = train_network(config, run_dir=folder)
        network = load_network(folder)
        found = evaluate_network(network, images_to_evaluate(open_source("digits", DATA), network))
        assert found.evaluation.top1 == pytest.approx(result.test_top1)
        saved = network.network.state_dict()
        assert all(torch.equal(saved[name], tensor) for name, tensor in result.network.state_dict().items())


def test_all_images_are_said_to_be_known(network: TrainedNetwork) -> None:
    chosen = images_to_evaluate(open_source("digits", DATA), network, every_image=True)
    assert (len(chosen.indices), chosen.what) == (1797, LEARNED)


def test_another_folder_is_used_whole(greys: tuple[TrainedNetwork, TrainResult, Path], tmp_path: Path) -> None:
    save_greys(tmp_path / "others", size=(30, 20))
    (tmp_path / "others" / "dark" / "00.png").unlink()
    chosen = images_to_evaluate(open_source(f"folder:{tmp_path / 'others'}", DATA), greys[0])
    assert (len(chosen.indices), chosen.what) == (39, ALL)


def test_images_that_the_network_learned_from_are_known_by_content(
    greys: tuple[TrainedNetwork, TrainResult, Path], tmp_path: Path
) -> None:
    """Another folder of the same name and size is used whole; the training's folder with one more image is noticed."""
    network, _, folder = greys
    shutil.copytree(folder / "greys", tmp_path / "renamed")
    same = images_to_evaluate(open_source(f"folder:{tmp_path / 'renamed'}", DATA), network)
    assert (len(same.indices), same.what, same.learned) == (8, HELD_OUT, 0)
    Image.new("RGB", (9, 9)).save(tmp_path / "renamed" / "dark" / "more.png")
    more = images_to_evaluate(open_source(f"folder:{tmp_path / 'renamed'}", DATA), network)
    assert (len(more.indices), more.what, more.learned) == (41, LEARNED, 32)
    save_greys(tmp_path / "greys", size=(30, 20))
    other = images_to_evaluate(open_source(f"folder:{tmp_path / 'greys'}", DATA), network)
    assert (len(other.indices), other.what, other.learned) == (40, ALL, 0)


def test_a_test_split_of_its_own_is_used(greys: tuple[TrainedNetwork, TrainResult, Path], tmp_path: Path) -> None:
    for part in ("train", "test"):
        save_greys(tmp_path / "split" / part)
    (tmp_path / "split" / "test" / "dark" / "00.png").unlink()
    source = open_source(f"folder:{tmp_path / 'split'}", DATA)
    chosen = images_to_evaluate(source, greys[0])
    assert (len(chosen.indices), chosen.what) == (39, OWN_TEST)
    assert len(images_to_evaluate(source, greys[0], every_image=True).indices) == 40


def test_classes_are_matched_by_name(greys: tuple[TrainedNetwork, TrainResult, Path], tmp_path: Path) -> None:
    """A data set may lack classes, and names in another order are other labels."""
    network = greys[0]
    save_greys(tmp_path / "a")
    shutil.move(tmp_path / "a" / "dark", tmp_path / "a" / "nothing")
    with pytest.raises(InputError, match="class 'nothing' is not one of the network's"):
        images_to_evaluate(open_source(f"folder:{tmp_path / 'a'}", DATA), network)
    source = open_source(f"folder:{greys[2] / 'greys'}", DATA)
    turned = type(source)(source.name, source.where, ("light", "dark"), source.pool)
    turned.pool.labels = 1 - turned.pool.labels
    labels = images_to_evaluate(turned, network, every_image=True).labels
    assert torch.equal(labels, 1 - turned.pool.labels)


def test_images_that_cannot_be_decoded(greys: tuple[TrainedNetwork, TrainResult, Path], tmp_path: Path) -> None:
    save_greys(tmp_path / "some")
    for number in range(3):
        (tmp_path / "some" / "dark" / f"{number:02}.png").write_text("no image")
    chosen = images_to_evaluate(open_source(f"folder:{tmp_path / 'some'}", DATA), greys[0])
    with pytest.raises(InputError, match=r"dark/00\.png: is not an image"):
        evaluate_network(greys[0], chosen)
    found = evaluate_network(greys[0], chosen, batch_size=3, skip_corrupt=True)
    assert found.evaluation.images == 37
    assert [entry.partition(": ")[0][-11:] for entry in found.corrupt] == [f"dark/0{n}.png" for n in range(3)]
    for path in (tmp_path / "some").rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(InputError, match="none of its 40 images can be decoded"):
        evaluate_network(greys[0], chosen, skip_corrupt=True)


def test_a_full_sketch_gives_an_estimate(
    greys: tuple[TrainedNetwork, TrainResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large training split only the smallest digests are kept."""
    network, _, folder = greys
    kept = network.config.mapolicy.dataset.learned
    assert kept is not None
    assert len(kept) == 12 * 32
    dataset = network.config.mapolicy.dataset.model_copy(update={"learned": kept[: 12 * 16]})
    mapolicy = network.config.mapolicy.model_copy(update={"dataset": dataset})
    config = network.config.model_copy(update={"mapolicy": mapolicy})
    monkeypatch.setattr("mapolicy.inference.evaluate.SKETCHED_IMAGES", 16)
    large = TrainedNetwork(network.network, config, network.reading)
    source = open_source(f"folder:{folder / 'greys'}", DATA)
    assert images_to_evaluate(source, large).what == HELD_OUT
    assert images_to_evaluate(source, large, every_image=True).learned == pytest.approx(32, abs=8)


def test_a_file_without_digests_is_read_as_before(greys: tuple[TrainedNetwork, TrainResult, Path]) -> None:
    """An older version wrote none, and name and number of images tell whether the data set is the training's."""
    network, _, folder = greys
    values = network.config.model_dump()
    del values["mapolicy"]["dataset"]["learned"]
    config = read_config(canonical_json.canonical(values), "old")
    assert config.mapolicy.dataset.learned is None
    old = TrainedNetwork(network.network, config, network.reading)
    source = open_source(f"folder:{folder / 'greys'}", DATA)
    assert images_to_evaluate(source, old).what == HELD_OUT
    assert images_to_evaluate(source, old, every_image=True).what == LEARNED
