"""Settings that tests share."""

from typing import Any

# A quarter of the digits: five iterations an epoch, as short as an iteration gets.
FEW: dict[str, Any] = {"train_per_class": 32, "batch_size": 64, "validation_batch_size": 64, "threads": 1}

# The paper's sampler and weights; the recipe for digits has the alignment sampler and equal weights.
PAPER: dict[str, Any] = {"sampler": "mean-weight", "weighting": "policy", "policy_input": "both"}

# What every configuration needs: a tiny run whose rates are 0 unless a test says otherwise.
TINY: dict[str, Any] = {
    "image_size": 8,
    "train_per_class": 5,
    "validation_per_class": 1,
    "test_per_class": 1,
    "base_augmentation": "none",
    "cutout": 0,
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 0.1,
    "weight_decay": 0,
    "clip_norm": 0,
    "validation_batch_size": 4,
    "policy_learning_rate": 0,
    "alpha_learning_rate": 0,
    "sampler_every": 1,
    "sampler_history": 1,
}
