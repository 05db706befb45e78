"""The names that settings may have, and groups of settings that are treated alike."""

from collections.abc import Mapping
from typing import Any

BASE_AUGMENTATIONS = ("none", "flip_crop", "random_resized_crop")
FILLS = ("mean", "black")
RESIZES = ("crop", "pad", "squash")
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")
ALPHA_BACKGROUND = "white|black|#[0-9a-f]{6}"  # a regular expression
_NUMBER = r"-?\d{1,13}(\.\d{1,20})?(e[+-]?\d{1,2})?"
LARGEST_VALUE = 1e12  # of a pixel
EVALUATION_SHARE = 224 / 256  # of the shorter side; for networks trained on random resized crops
VALUE_RANGE = rf"auto|full|{_NUMBER}:{_NUMBER}"
MODES = ("frozen", "finetune")
ALPHAS = ("scalar", "per-layer")
LOSS = "loss"
POLICY_INPUTS = ("both", "features", "embedding", LOSS)
EXTRACTORS = ("shared", "own")
PRECISIONS = ("float32", "bfloat16")
STORED_DTYPES = ("float32", "float16", "bfloat16")  # of a bundle's extractor
DEVICES = ("auto", "cpu", "cuda")
REWEIGHT = "reweight"
WEIGHTINGS = ("policy", "equal", REWEIGHT)
CLASS, FEATURES = "class", "features"
SAMPLER_INPUTS = ("none", CLASS, FEATURES)
AS_SEARCHED = "as-searched"
BATCH_NORMS = ("local", "synchronised")
COMPILE = ("auto", "never", "always")
SCHEDULES = ("cosine", "theorem1")
ON_DIVERGENCE = ("stop", "rollback")
NORMALISATIONS = ("auto", "data", "network")
BALANCES = ("none", "sampler", "loss")
LAST_BATCHES = ("drop", "keep")
MEMORY, WHOLE, SMALL, OFF = "memory", "whole", "small", "off"
KEPT_IMAGES = (MEMORY, WHOLE, SMALL, OFF)
SAME_CROPS = frozenset({MEMORY, WHOLE, OFF})  # of KEPT_IMAGES those that differ in speed alone
VERIFICATIONS = ("full", "short")
TRAIN_SCHEDULES = ("cosine", "tanh", "poly", "step", "wsd", "rsqrt", "constant")

SHORT_NAMES: Mapping[str, str] = {"pyramidnet": "pyramidnet272_a200"}  # of networks

# Settings of `--fast`: no approximation, but theta and alpha are updated only in every sixth iteration.
FAST: Mapping[str, Any] = {"meta_every": 6}

# Settings that the first version did not have, and what it did.
LATER: Mapping[str, Any] = {
    "sampler": "mean-weight",
    "weighting": "policy",
    "training_loss": "cross-entropy",
    "validation_loss": "cross-entropy",
    "alignment_strength": 3.0,
    "alignment_rate": 0.1,
    "alignment_decay": 0.02,
    "adversarial_rate": 0.01,
    "adversarial_entropy": 0.1,
    "level_bins": 4,
    "level_course": False,
    "sampler_input": "none",
    "verify": False,
    "verify_per_class": 0.0,
    "verification": "full",
    "pretrained": False,
    "normalisation": "auto",
    "freeze": False,
    "layer_decay": 1.0,
    "resize": "crop",
    "interpolation": "bilinear",
    "alpha_background": "white",
    "value_range": "auto",
    "nested_classes": False,
    "label_smoothing": 0.0,
    "balance": "none",
    "mixup": 0.0,
    "cutmix": 0.0,
    "mix_probability": 1.0,
    "ema_decay": 0.0,
    "keep_best": False,
    "early_stopping": 0,
    "last_batch": "drop",
    "keep_images": MEMORY,
}

# Settings that a recipe may leave out: their defaults change nothing.
OPTIONAL = frozenset(
    {
        *(
            "verification",
            "level_course",
            "sampler_input",
            "weight_limit",
            "verify_per_class",
            "pretrained",
            "normalisation",
            "freeze",
            "layer_decay",
        ),
        *("adversarial_rate", "adversarial_entropy"),
        *("label_smoothing", "balance", "mixup", "cutmix", "mix_probability", "ema_decay"),
        *("keep_best", "early_stopping", "last_batch", "schedule", "decay_epochs", "decay_rate"),
        *("resize", "interpolation", "alpha_background", "value_range", "nested_classes", "keep_images"),
    }
)

_MIXES = "it mixes images, so no image has a loss of its own, and the hypergradient is of each image's weight"
# Settings that cannot be used while a policy is learned, and why.
NOT_WHILE_LEARNING: Mapping[str, str] = {
    "mixup": _MIXES,
    "cutmix": _MIXES,
    "last_batch": "weights are relative to the other images of a batch, so all batches must be of one size",
}
# Settings that cannot be used in a search, and why.
NOT_IN_SEARCH: Mapping[str, str] = {
    **NOT_WHILE_LEARNING,
    "ema_decay": "the policy reads the proxy's own features and has never seen those of an average",
    "keep_best": "the proxy of the best epoch goes with the policy of that epoch, and the policy is that of the last",
    "early_stopping": "the policy's sampler and its memory follow the length of the run",
}

# Where and how a run executes. The result does not depend on these (threads and device: up to rounding). A run knows
# the file of `weights` by its content.
MACHINE_FIELDS = frozenset(
    {
        "data_dir",
        "download",
        "weights",
        "workers",
        "memory_limit_gib",
        "cache_dir",
        "device",
        "threads",
        "checkpoint_minutes",
        "on_divergence",
        "patience_seconds",
    }
)


def result_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings those that its result depends on: no `MACHINE_FIELDS`, one name for equal crops."""
    found = {name: value for name, value in settings.items() if name not in MACHINE_FIELDS}
    return found | ({"keep_images": MEMORY} if found.get("keep_images") in SAME_CROPS else {})


def untagged(network: str) -> str:
    """A network's name without the tag of its weights: `resnet18.a1_in1k` becomes `resnet18`."""
    return network.partition(".")[0]
