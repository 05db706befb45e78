"""`mapolicy bench transfer`: its rows, the work of each, and the random bundle."""

import itertools

import pytest
import torch

from mapolicy import Transformation
from mapolicy.bench import transfer
from mapolicy.bilevel.bilevel_step import BilevelStep
from mapolicy.policy.frozen import FrozenExtractor
from tests.bench.configs import search_config, train_config

CPU = torch.device("cpu")
ALIGNMENT = {"sampler": "alignment", "weighting": "equal"}


def test_transfer_rows() -> None:
    targets = [train_config(), train_config(arch="resnet10t", image_size=32)]
    document = transfer.measure_transfer(search_config(cutout=4), targets, 2).document()
    names = ["plain", "frozen", "finetune", "uniform", "outside_networks"]
    assert [(row["arch"], row["what"]) for row in document["rows"]] == [
        *(("wrn10_1", name) for name in names),
        *(("resnet10t", name) for name in names),
    ]
    assert {row["against"] for row in document["rows"]} == {"plain"}
    assert document["settings"]["archs"] == ["wrn10_1", "resnet10t"]


def test_the_frozen_row_weighs_with_the_bundles_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each row asks of augmentation and extractor, counted."""
    seen = []
    extract, transform = FrozenExtractor.__call__, Transformation.apply

    def extracting(self, images):
        seen.append("extract")
        return extract(self, images)

    def applying(self, *arguments, **more):
        seen.append("transform")
        return transform(self, *arguments, **more)

    monkeypatch.setattr(FrozenExtractor, "__call__", extracting)
    monkeypatch.setattr(Transformation, "apply", applying)
    transfer.measure_transfer(search_config(cutout=4), [train_config()], 1)
    # Two rounds, one of them the warm-up: frozen and fine-tuned transform and extract, uniform transforms, no other.
    assert seen == list(itertools.chain(*[["transform", "extract", "transform", "extract", "transform"]] * 2))


def test_the_finetune_row_alone_takes_hypergradients(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []
    step = BilevelStep.__call__

    def stepping(self, *arguments, **more):
        record = step(self, *arguments, **more)
        learned.append(record.hypergradient is not None)
        return record

    monkeypatch.setattr(BilevelStep, "__call__", stepping)
    transfer.measure_transfer(search_config(cutout=4, **ALIGNMENT), [train_config()], 1)
    assert learned == [True, True], "one in the warm-up, one in the round"


@pytest.mark.parametrize(("changes", "levels"), [({}, False), (ALIGNMENT, True)])
def test_random_bundle_is_one_that_loads(changes: dict[str, str], levels: bool) -> None:
    bundle = transfer.random_bundle(search_config(cutout=4, **changes), 1, CPU)
    assert (bundle.log_levels is not None) == levels
    again = type(bundle).from_bytes(bundle.to_bytes())
    assert again.digest == bundle.digest
    assert again.manifest.extractor.arch == "wrn10_1"
    assert again.manifest.input.size == 8
