"""A network on a labelled data set: which images are used, and the figures that training reported."""

import shutil
from pathlib import Path

import pytest
import torch

from mapolicy import TrainedNetwork, TrainResult, load_network, train_network
from mapolicy.data.dataset_factory import open_source
from mapolicy.errors import InputError
from mapolicy.inference.evaluate import ALL, HELD_OUT, LEARNED, OWN_TEST, evaluate_network, images_to_evaluate
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
