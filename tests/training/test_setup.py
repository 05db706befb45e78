"""The training setup: which part of the data a run trains on, and with which optimiser and schedule."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from mapolicy import train_network
from mapolicy.errors import InputError, UsageError
from mapolicy.training.setup import TrainingSetup

CPU = torch.device("cpu")


def test_meta_validation_images_are_trained_on_if_asked(make_train_config) -> None:
    without = TrainingSetup.build(make_train_config(policy="none"), CPU)
    included = TrainingSetup.build(make_train_config(policy="none", include_validation=True), CPU)
    train, validation = (
        set(split.indices.tolist()) for split in (without.splits.train, without.splits.meta_validation)
    )
    assert set(without.training.indices.tolist()) == train
    assert set(included.training.indices.tolist()) == train | validation
    assert len(train & validation) == 0
    assert without.iterations_per_epoch == len(train) // 64
    assert included.iterations_per_epoch == len(train | validation) // 64


def test_a_lone_image_is_refused_where_it_is_normalised_over(make_train_config, make_search_config) -> None:
    with pytest.raises(UsageError, match="batch_size: resnet10t cannot train on one image at a time"):
        TrainingSetup.build(make_train_config(policy="none", arch="resnet10t", batch_size=1), CPU)
    vit = {"arch": "vit_tiny_patch16_224", "model_args": {"img_size": 8, "patch_size": 4}}
    assert TrainingSetup.build(make_train_config(policy="none", batch_size=1, **vit), CPU).iterations > 0
    with pytest.raises(UsageError, match="weight of a lone sample is always 1"):
        TrainingSetup.build(make_search_config(batch_size=1), CPU)
    with pytest.raises(UsageError, match="validation_batch_size: resnet10t cannot train"):
        TrainingSetup.build(make_search_config(proxy="resnet10t", validation_batch_size=1), CPU)


def test_meta_validation_batches_are_divided_only_where_a_policy_is_learned(
    make_train_config, make_search_config
) -> None:
    odd = {"validation_batch_size": 9, "accumulate": 2}
    assert TrainingSetup.build(make_train_config(policy="none", **odd), CPU).iterations > 0
    for config in (make_search_config(**odd), make_train_config(mode="finetune", **odd)):
        with pytest.raises(UsageError, match="validation_batch_size: 9 images are not divided by"):
            TrainingSetup.build(config, CPU)


def test_a_bundles_meta_validation_images_are_taken(make_train_config) -> None:
    chosen = torch.tensor([1, 5, 9, 700, 1200])
    setup = TrainingSetup.build(make_train_config(policy="none", test_per_class=1.0), CPU, meta_validation=chosen)
    assert setup.splits.meta_validation.indices.tolist() == chosen.tolist()
    assert not set(chosen.tolist()) & set(setup.training.indices.tolist())


def test_the_check_comes_before_the_network(make_train_config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_) -> None:
        raise AssertionError("the network was built")

    def refuse(name, classes, images, fingerprint) -> None:
        raise InputError(name, "is refused")

    monkeypatch.setattr("mapolicy.training.setup.build_network", fail)
    with pytest.raises(InputError, match="digits: is refused"):
        TrainingSetup.build(make_train_config(policy="none"), CPU, check=refuse)


def test_an_unknown_arch_is_refused_before_the_data_is_read(make_train_config, monkeypatch) -> None:
    monkeypatch.setattr("mapolicy.training.setup.load_splits", lambda *_: pytest.fail("the data was read"))
    with pytest.raises(UsageError, match="registry"):
        TrainingSetup.build(make_train_config(policy="none", arch="resnet51"), CPU)


def test_the_network_starts_from_the_seed_alone(make_train_config) -> None:
    def weights(**changes) -> list[torch.Tensor]:
        return list(TrainingSetup.build(make_train_config(policy="none", **changes), CPU).network.parameters())

    torch.manual_seed(5)
    one = weights()
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(one, weights(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, weights(seed=1), strict=True))


def test_facts_name_what_a_user_wants_to_know(make_train_config) -> None:
    facts = TrainingSetup.build(make_train_config(policy="none"), CPU).facts()
    assert facts["images"] == "320 training, 179 meta-validation"
    assert facts["classes"] == "10"
    assert "million parameters" in facts["network"]


def test_images_that_no_epoch_sees_are_told_before_the_start(make_train_config) -> None:
    facts = TrainingSetup.build(make_train_config(policy="none", train_per_class=22, batch_size=128), CPU).facts()
    assert facts["left out"] == "92 of 220 images, others in each epoch; set last_batch=keep or batch_size=110"
    learning = TrainingSetup.build(make_train_config(mode="finetune", train_per_class=22, batch_size=128), CPU).facts()
    assert learning["left out"].endswith("; set batch_size=110")
    for changes in ({"last_batch": "keep"}, {"batch_size": 110}, {"batch_size": 216}):
        config = make_train_config(policy="none", **{"train_per_class": 22, "batch_size": 128, **changes})
        assert "left out" not in TrainingSetup.build(config, CPU).facts(), changes
    few = TrainingSetup.build(make_train_config(policy="none", train_per_class=4, last_batch="keep"), CPU)
    assert few.iterations_per_epoch == 1, "40 images are a batch"


@pytest.mark.parametrize(
    ("arch", "size", "model_args", "lost"),
    [
        ("resnet10t", 32, {}, True),
        ("resnet10t", 64, {}, False),
        ("resnet10t", 32, {"output_stride": 8}, False),
        ("wrn10_1", 8, {}, False),
        ("test_vit", 32, {"img_size": 32}, False),
    ],
)
def test_a_last_feature_map_of_one_pixel_is_told(
    arch: str, size: int, model_args, lost: bool, make_train_config
) -> None:
    config = make_train_config(policy="none", arch=arch, image_size=size, model_args=model_args)
    facts = TrainingSetup.build(config, CPU).facts()
    assert ("feature map" in facts) == lost
    if lost:
        assert facts["feature map"].startswith(
            "1 x 1 at 32 pixels, so it is lost where in the image something is; use --image-size 64"
        )


def test_weights_of_8_bit_images_are_said_for_others(make_train_config, tmp_path: Path) -> None:
    for name in ("dark", "light"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        for number in range(12):
            values = np.linspace(number, 4095, 64).astype(np.uint16).reshape(8, 8)
            Image.fromarray(values).save(tmp_path / "zoo" / name / f"{number}.png")
    of_folder = {"policy": "none", "dataset": "folder:zoo", "data_dir": str(tmp_path), "train_per_class": 0.0}
    small = {"validation_per_class": 2.0, "test_per_class": 2.0, "batch_size": 8, "epochs": 1}
    config = make_train_config(**of_folder, **small)
    assert "values" not in TrainingSetup.build(config, CPU).warnings()
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "eight.safetensors")
    warm = config.with_changes(weights=str(tmp_path / "eight.safetensors"))
    found = TrainingSetup.build(warm, CPU).warnings()["values"]
    assert found.startswith("the weights were trained on 8-bit images; here 0 to 4095 become black to white")
    train_network(config, run_dir=tmp_path / "run")
    again = config.with_changes(weights=str(tmp_path / "run" / "network.safetensors"))
    assert "values" not in TrainingSetup.build(again, CPU).warnings(), "its own images have the same range"
