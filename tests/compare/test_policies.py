"""Every policy of a comparison trains with the same settings, or the comparison does not begin."""

import pytest

from mapolicy import PolicyBundle
from mapolicy.compare.policies import compared_policies, titles
from mapolicy.config.choices import OPTIONAL
from mapolicy.errors import UsageError

EVERYTHING = {
    "mixup": 0.2,
    "label_smoothing": 0.1,
    "balance": "sampler",
    "ema_decay": 0.9,
    "early_stopping": 2,
    "last_batch": "keep",
    "layer_decay": 0.7,
    "pretrained": True,
    "freeze": True,
    "schedule": "step",
}


def test_policies_share_what_a_training_adds(bundle: PolicyBundle, make_train_config) -> None:
    config = make_train_config(**EVERYTHING)
    policies = compared_policies([bundle], [], ["frozen"], ["none", "uniform", "sampler-only"])
    assert len(policies) == 4
    for policy in policies:
        own = policy.configure(config).to_mapping()
        assert {name: own[name] for name in OPTIONAL & own.keys()} == {
            name: value for name, value in config.to_mapping().items() if name in OPTIONAL
        }
        assert own.items() >= EVERYTHING.items()


def test_a_policy_that_cannot_have_them_is_refused(bundle: PolicyBundle, make_train_config) -> None:
    frozen, finetuned = compared_policies([bundle], [], ["frozen", "finetune"], [])
    frozen.configure(make_train_config(mixup=0.2))
    with pytest.raises(UsageError, match="mixup in mode finetune: it mixes images"):
        finetuned.configure(make_train_config(mixup=0.2))


def test_a_dataset_level_policy_has_the_name_that_it_was_asked_for_by() -> None:
    bundles = [
        {"digest": "a" * 64, "origin": "searched.safetensors", "proxy": "wrn10_1"},
        {"digest": "b" * 64, "origin": "pba-cifar10", "source": "Population Based Augmentation"},
        {"digest": "c" * 64, "origin": "/some/where/dada.safetensors", "source": "list"},
        {"digest": "d" * 64, "origin": "", "source": "RandAugment, N 2"},
        {"digest": "e" * 64, "origin": "one/list.py", "source": "list"},
        {"digest": "f" * 64, "origin": "two/list.py", "source": "list"},
    ]
    assert titles(bundles) == {
        "dataset-level-bbbbbbbbbbbb": "pba-cifar10",
        "dataset-level-cccccccccccc": "dada",
        "dataset-level-dddddddddddd": "RandAugment, N 2",
        "dataset-level-eeeeeeeeeeee": "list.py (eeeeeeeeeeee)",
        "dataset-level-ffffffffffff": "list.py (ffffffffffff)",
    }
