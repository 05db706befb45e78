"""Settings of a search, compared on images that are no test images of their split.

python benchmarks/evidence/choice.py --data-dir DIR --work-dir runs/choice

For each split, the training and meta-validation images of Omniglot's "small 1" become a data set of their own, of
which 12 / 2 / 3 drawings of each character are for training, meta-validation and telling variants apart. What stands in
the work folder is kept, so that a command that was stopped goes on where it was; the figures go to
benchmarks/evidence/choice.json.
"""

import argparse
import json
from pathlib import Path

import torch
from table import HERE, OMNIGLOT, Table, mapolicy, options

from mapolicy.data.dataset_factory import open_source
from mapolicy.data.stratify import per_class, shuffled_classes, take

SPLITS = range(100, 104)
# Settings beside search-any's of the time, whose policy saw "both", with rate 1e-3 and memory 0.17.
BOTH = {"policy_input": "both"}
VARIANTS: dict[str, dict[str, object]] = {
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


def main() -> None:
    """Search and train what is not there yet, keep the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    arguments = parser.parse_args()
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in VARIANTS}
    for split in SPLITS:
        folder = held_out_folder(arguments.data_dir, arguments.work_dir, split)
        settings = OMNIGLOT | {"train_per_class": 12}
        table = Table(folder.name, settings, 40, {"stem_stride": 2}, ("wrn10_1",), bundles=1)
        look = {key: OMNIGLOT[key] for key in ("image_size", "base_augmentation", "cutout")}
        own = Table(folder.name, look, 40, {"stem_stride": 2}, ("wrn10_1",), bundles=1)
        for number, (name, changes) in enumerate(VARIANTS.items()):
            bundle = arguments.work_dir / f"{split}-{number}.safetensors"
            run = arguments.work_dir / f"compare{split}-{number}"
            if not bundle.exists():
                mapolicy(
                    *("search", f"folder:{folder.name}", "--proxy", "wrn10_1", "--recipe", "search-any"),
                    *options(table, folder.parent, [f"{key}={value}" for key, value in changes.items()]),
                    *("--seed", str(split), "--set", f"split_seed={split}", "--out", str(bundle)),
                    *("--run-dir", str(arguments.work_dir / f"search{split}-{number}"), "--force"),
                )
            rivals = "uniform,sampler-only,weights-only" if number == 0 else "sampler-only"
            document = mapolicy(
                *("compare", "--bundle", str(bundle), "--arch", "wrn10_1", "--against", rivals, "--seeds", "1"),
                *("--recipe", "train-any", *options(own, folder.parent, []), "--run-dir", str(run)),
                *(["--resume"] if run.exists() else []),
            )
            found[name][split] = {row["policy"]: row["test_top1"] for row in json.loads(document)["rows"]}
    (HERE / "choice.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
