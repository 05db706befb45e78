"""One table of docs/evidence.md: searches on several splits, then `mapolicy compare` over all of their bundles.

python benchmarks/evidence/table.py omniglot --data-dir DIR --work-dir runs/evidence
python benchmarks/evidence/table.py omniglot-wrn16_1 --data-dir DIR --work-dir runs/evidence
python benchmarks/evidence/table.py cifar100 --data-dir DIR --work-dir runs/evidence

DIR holds the folders of images. Bundle number i is searched with seed i on split i, counted from `--first`. What stands
in the work folder is kept, so that a command that was stopped goes on where it was; the figures go to
benchmarks/evidence/TABLE.json, or NAME.json.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from mapolicy import PolicyBundle

HERE = Path(__file__).resolve().parent
EVERY_RIVAL = "none,uniform,trivialaugment,randaugment,sampler-only,weights-only"
OMNIGLOT = {
    "image_size": 32,
    "base_augmentation": "none",
    "cutout": 0,
    "train_per_class": 15,
    "validation_per_class": 2,
    "test_per_class": 3,
}


@dataclass(frozen=True)
class Table:
    """What a table is made of.

    Attributes:
        dataset: folder below the data folder.
        settings: of searches and trainings alike.
        epochs: of both.
        model_args: of the networks.
        archs: networks trained with the bundles; the first one is also the proxy.
        bundles: searches, each with its own split.
        searched_for: the table whose bundles are used; its own otherwise.
        modes: of the learned policy.
    """

    dataset: str
    settings: dict[str, object]
    epochs: int
    model_args: dict[str, object]
    archs: tuple[str, ...]
    bundles: int
    searched_for: str | None = None
    modes: str = "frozen"


# Photos of hand signs for 0 to 9: 20 training, 10 meta-validation and 150 test images of each.
SIGNS = {
    "image_size": 32,
    "base_augmentation": "none",
    "cutout": 0,
    "train_per_class": 20,
    "validation_per_class": 10,
    "test_per_class": 150,
}
TABLES = {
    # 136 characters of Omniglot's "small 1", 15 / 2 / 3 drawings each; the stem's stride makes a CPU search bearable.
    "omniglot": Table("omniglot-small1", OMNIGLOT, 40, {"stem_stride": 2}, ("wrn10_1",), bundles=10),
    # The same bundles, other networks.
    "omniglot-wrn16_1": Table(
        "omniglot-small1", OMNIGLOT, 40, {"stem_stride": 2}, ("wrn16_1",), bundles=5, searched_for="omniglot"
    ),
    "omniglot-test_resnet": Table(
        "omniglot-small1", OMNIGLOT, 40, {}, ("test_resnet",), bundles=5, searched_for="omniglot"
    ),
    "omniglot-resnet10t": Table(
        "omniglot-small1", OMNIGLOT, 40, {}, ("resnet10t",), bundles=5, searched_for="omniglot"
    ),
    # A small transformer behind convolutions: vit_tiny_patch16_224 does not learn 136 characters in 600 iterations.
    "omniglot-mobilevit_xxs": Table(
        "omniglot-small1", OMNIGLOT, 40, {}, ("mobilevit_xxs",), bundles=5, searched_for="omniglot"
    ),
    # The same bundles on their own network, theta going on.
    "omniglot-finetune": Table(
        "omniglot-small1",
        OMNIGLOT,
        40,
        {"stem_stride": 2},
        ("wrn10_1",),
        bundles=5,
        searched_for="omniglot",
        modes="frozen,finetune",
    ),
    "signs": Table("Dataset", SIGNS, 160, {"stem_stride": 2}, ("wrn10_1",), bundles=5),
    "signs-wrn16_1": Table("Dataset", SIGNS, 160, {"stem_stride": 2}, ("wrn16_1",), bundles=5, searched_for="signs"),
    "signs-test_resnet": Table("Dataset", SIGNS, 160, {}, ("test_resnet",), bundles=5, searched_for="signs"),
    # 50 training and 10 meta-validation images of each class; the whole test split.
    "cifar100": Table(
        "cifar100",
        {"image_size": 16, "cutout": 4, "train_per_class": 50, "validation_per_class": 10},
        epochs=15,
        model_args={},
        archs=("wrn10_1",),
        bundles=4,
    ),
}


def mapolicy(*arguments: str) -> str:
    """Run a command; its standard output."""
    print("mapolicy", *arguments, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "mapolicy", *arguments, "--quiet", "--json"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def options(table: Table, data_dir: Path, extra: list[str]) -> list[str]:
    """What searches and trainings share."""
    settings = table.settings | {"threads": 1}
    found = ["--data-dir", str(data_dir), "--epochs", str(table.epochs)]
    for name, value in settings.items():
        found += ["--set", f"{name}={value}"]
    for change in extra:
        found += ["--set", change]
    for name, value in table.model_args.items():
        found += ["--model-arg", f"{name}={value}"]
    return found


def main() -> None:
    """Search what is not there yet, compare, keep the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--bundles", type=int, help="so many instead of the table's")
    parser.add_argument("--first", type=int, default=0, help="seed and split of the first bundle")
    parser.add_argument("--epochs", type=int, help="of searches and trainings, instead of the table's")
    parser.add_argument("--train-per-class", type=int, help="training images of each class, instead of the table's")
    parser.add_argument("--searched-for", help="the name of results whose bundles are used")
    parser.add_argument("--modes", help="of the learned policies, instead of the table's")
    parser.add_argument("--budget", default="equal-epochs", help="of the trainings: equal-epochs or equal-time")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--against", default=EVERY_RIVAL)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE: another setting, of the searches alone")
    parser.add_argument("--train-set", action="append", default=[], help="KEY=VALUE: of the trainings alone")
    parser.add_argument("--name", help="of the results, where settings differ; the table's name otherwise")
    arguments = parser.parse_args()
    table, name = TABLES[arguments.table], arguments.name or arguments.table
    if arguments.epochs:
        table = replace(table, epochs=arguments.epochs)
    if arguments.train_per_class:
        table = replace(table, settings=table.settings | {"train_per_class": arguments.train_per_class})
    searched_for = arguments.searched_for or table.searched_for or name
    searched = TABLES[table.searched_for] if table.searched_for else table
    work, searches = arguments.work_dir / name, arguments.work_dir / searched_for
    for folder in (work, searches):
        folder.mkdir(parents=True, exist_ok=True)
    bundles = []
    for number in range(arguments.first, arguments.first + (arguments.bundles or table.bundles)):
        bundle = searches / f"bundle{number}.safetensors"
        bundles += ["--bundle", str(bundle)]
        if not bundle.exists():
            seeds = ["--seed", str(number), "--set", f"split_seed={number}"]
            mapolicy(
                *("search", f"folder:{table.dataset}", "--proxy", searched.archs[0], "--recipe", "search-any"),
                *options(searched, arguments.data_dir, arguments.set),
                *seeds,
                *("--out", str(bundle), "--run-dir", str(searches / f"search{number}"), "--force"),
            )
    run = work / "compare"
    own = {key: value for key, value in table.settings.items() if key in ("image_size", "base_augmentation", "cutout")}
    free = Table(table.dataset, own, table.epochs, table.model_args, table.archs, table.bundles)
    document = mapolicy(
        *("compare", *bundles, "--against", arguments.against, "--mode", arguments.modes or table.modes),
        *("--seeds", "1", "--recipe", "train-any", "--budget", arguments.budget),
        *(part for arch in table.archs for part in ("--arch", arch)),
        *options(free, arguments.data_dir, arguments.train_set),
        *("--jobs", str(arguments.jobs), "--run-dir", str(run), *(["--resume"] if run.exists() else [])),
    )
    result = json.loads(document)
    del result["run"]  # where the files lay is of no use elsewhere
    for bundle in result["bundles"]:
        checked = PolicyBundle.load(bundle["origin"]).manifest.verification
        bundle["origin"] = Path(bundle["origin"]).name
        bundle["verification"] = None if checked is None else checked.model_dump(mode="json")
    for settings in result["settings"].values():
        settings.pop("data_dir", None)
    (HERE / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
