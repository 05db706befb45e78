"""Settings of a search, compared on images that are no test images of their split.

python benchmarks/evidence/choice.py alignment --data-dir DIR --work-dir runs/choice

For each split, the training and meta-validation images of Omniglot's "small 1" become a data set of their own, of
which 12 / 2 / 3 drawings of each character are for training, meta-validation and telling variants apart. What stands in
the work folder is kept, so that a command that was stopped goes on where it was; the figures go to
benchmarks/evidence/choice-alignment.json, or choice-mean-weight.json.
"""

import argparse
import json
from pathlib import Path

import torch
from table import HERE, OMNIGLOT, Table, mapolicy, options

from mapolicy.data.dataset_factory import open_source
from mapolicy.data.stratify import per_class, shuffled_classes, take

SPLITS = range(100, 104)
# Settings beside search-any's.
ALIGNMENT: dict[str, dict[str, object]] = {
    "as it is": {},
    "meta_every = 3": {"meta_every": 3},
    "alignment_rate = 0.05": {"alignment_rate": 0.05},
    "alignment_rate = 0.2": {"alignment_rate": 0.2},
    "alignment_decay = 0.01": {"alignment_decay": 0.01},
    "alignment_decay = 0.04": {"alignment_decay": 0.04},
    "alignment_strength = 1.5": {"alignment_strength": 1.5},
    "alignment_strength = 6": {"alignment_strength": 6.0},
    "level_bins = 2": {"level_bins": 2},
    "level_bins = 8": {"level_bins": 8},
    # The same walk in fewer steps.
    "meta_every = 3, rate 0.3, decay 0.06": {"meta_every": 3, "alignment_rate": 0.3, "alignment_decay": 0.06},
    "meta_every = 2, rate 0.2, decay 0.04": {"meta_every": 2, "alignment_rate": 0.2, "alignment_decay": 0.04},
}
# The same for Algorithm 1 as printed. When this was chosen, search-any's policy saw "both", with memory 0.17.
BOTH = {"policy_input": "both"}
MEAN_WEIGHT: dict[str, dict[str, object]] = {
    "both": BOTH,
    "embedding": {"policy_input": "embedding"},
    "both, rate 3e-4, memory 1": BOTH | {"policy_learning_rate": 3e-4, "policy_memory": 1.0},
    "both, rate 1e-2, memory 1": BOTH | {"policy_learning_rate": 1e-2, "policy_memory": 1.0},
    "both, validation batch 272": BOTH | {"validation_batch_size": 272},
    "embedding, memory 1": {"policy_input": "embedding", "policy_memory": 1.0},
    "embedding, rate 1e-2": {"policy_input": "embedding", "policy_learning_rate": 1e-2},
    "embedding, sampler_temperature 0.3": {"policy_input": "embedding", "sampler_temperature": 0.3},
    "embedding, sampler_temperature 0.1": {"policy_input": "embedding", "sampler_temperature": 0.1},
}
# For each sampler: what every variant has in common, the variants, the baselines of the first one, of all others.
CHOICES: dict[str, tuple[dict[str, object], dict[str, dict[str, object]], str, str]] = {
    "alignment": ({"verify": "false"}, ALIGNMENT, "uniform,trivialaugment", ""),
    "mean-weight": (
        {"verify": "false", "sampler": "mean-weight", "weighting": "policy"},
        MEAN_WEIGHT,
        "uniform,sampler-only,weights-only",
        "sampler-only",
    ),
}


def held_out_folder(data_dir: Path, work: Path, split: int) -> Path:
    """Links to the images that are not for testing in that split, by class."""
    folder = work / f"data{split}"
    source = open_source("folder:omniglot-small1", data_dir)
    orders = shuffled_classes(source.pool.labels, source.classes, split)
    sizes = torch.bincount(source.pool.labels, minlength=len(source.classes)).tolist()
    _, left = take(orders, per_class(OMNIGLOT["test_per_class"], sizes), source.classes, "test_per_class")
    for position in torch.cat(left).tolist():
        image = data_dir.resolve() / "omniglot-small1" / source.pool.name(position)
        link = folder / image.parent.name / image.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(image)
    return folder


def accuracies(
    work: Path, folder: Path, split: int, label: str, changes: dict[str, object], baselines: str
) -> dict[str, float]:
    """Search on a folder, train with what was found, and give each policy's accuracy in per cent."""
    table = Table(folder.name, OMNIGLOT | {"train_per_class": 12}, 40, {"stem_stride": 2}, ("wrn10_1",), bundles=1)
    look = {key: OMNIGLOT[key] for key in ("image_size", "base_augmentation", "cutout")}
    own = Table(folder.name, look, 40, {"stem_stride": 2}, ("wrn10_1",), bundles=1)
    bundle, run = work / f"{split}-{label}.safetensors", work / f"compare{split}-{label}"
    if not bundle.exists():
        mapolicy(
            *("search", f"folder:{folder.name}", "--proxy", "wrn10_1", "--recipe", "search-any"),
            *options(table, folder.parent, [f"{key}={value}" for key, value in changes.items()]),
            *("--seed", str(split), "--set", f"split_seed={split}", "--out", str(bundle)),
            *("--run-dir", str(work / f"search{split}-{label}"), "--force"),
        )
    document = mapolicy(
        *("compare", "--bundle", str(bundle), "--arch", "wrn10_1", "--against", baselines, "--seeds", "1"),
        *("--recipe", "train-any", *options(own, folder.parent, []), "--run-dir", str(run)),
        *(["--resume"] if run.exists() else []),
    )
    return {row["policy"]: row["test_top1"] for row in json.loads(document)["rows"]}


def main() -> None:
    """Search and train what is not there yet, keep the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sampler", choices=CHOICES)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    arguments = parser.parse_args()
    common, variants, first, others = CHOICES[arguments.sampler]
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in variants}
    for number, (name, changes) in enumerate(variants.items()):
        for split in SPLITS:
            folder = held_out_folder(arguments.data_dir, arguments.work_dir, split)
            label, baselines = f"{arguments.sampler}{number}", others if number else first
            found[name][split] = accuracies(arguments.work_dir, folder, split, label, common | changes, baselines)
            (HERE / f"choice-{arguments.sampler}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
