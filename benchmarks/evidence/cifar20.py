"""CIFAR-100 where no operation harms: 20 random classes, 100 training images of each, all 2,000 test images.

python benchmarks/evidence/cifar20.py --data-dir DIR --work-dir runs/evidence --draws 4

DIR holds `cifar100/train` and `cifar100/test`. Draw number i takes its classes and images from seed i; a policy is
searched on it and compared with others on the same network. What stands in the work folder is kept, so that a command
that was stopped goes on where it was; the figures go to benchmarks/evidence/cifar20.json, or NAME.json.
"""

import argparse
import json
import random
from pathlib import Path

from table import HERE, Table, mapolicy, options

from mapolicy import PolicyBundle

CLASSES, IMAGES = 20, 100
SETTINGS = {
    "image_size": 16,
    "base_augmentation": "flip_crop",
    "cutout": 0,
    "train_per_class": 90,
    "validation_per_class": 10,
    "test_per_class": 0,
}


def drawn_folder(data_dir: Path, work: Path, draw: int) -> Path:
    """Links to the images of a draw, by class."""
    source, folder, chooser = data_dir.resolve() / "cifar100", work / f"cifar20-{draw}", random.Random(draw)
    for name in chooser.sample(sorted(path.name for path in (source / "train").iterdir()), CLASSES):
        images = sorted((source / "train" / name).iterdir())
        for split, chosen in (
            ("train", chooser.sample(images, IMAGES)),
            ("test", sorted((source / "test" / name).iterdir())),
        ):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for image in chosen:
                link = folder / split / name / image.name
                if not link.is_symlink():
                    link.symlink_to(image)
    return folder


def main() -> None:
    """Search and compare what is not there yet, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="the first draw")
    parser.add_argument("--against", default="none,uniform,trivialaugment")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE: another setting, of the searches alone")
    parser.add_argument("--name", default="cifar20", help="of the results, where settings differ")
    arguments = parser.parse_args()
    rows, settings, checks = [], {}, {}
    for draw in range(arguments.first, arguments.first + arguments.draws):
        folder = drawn_folder(arguments.data_dir, arguments.work_dir, draw)
        table = Table(folder.name, SETTINGS, 100, {}, ("wrn10_1",), bundles=1)
        look = {key: SETTINGS[key] for key in ("image_size", "base_augmentation", "cutout")}
        own = Table(folder.name, look, 100, {}, ("wrn10_1",), bundles=1)
        work = arguments.work_dir / arguments.name
        work.mkdir(exist_ok=True)
        bundle, run = work / f"bundle{draw}.safetensors", work / f"compare{draw}"
        if not bundle.exists():
            mapolicy(
                *("search", f"folder:{folder.name}", "--proxy", "wrn10_1", "--recipe", "search-any"),
                *options(table, folder.parent, arguments.set),
                *("--seed", str(draw), "--out", str(bundle)),
                *("--run-dir", str(work / f"search{draw}"), "--force"),
            )
        document = mapolicy(
            *("compare", "--bundle", str(bundle), "--arch", "wrn10_1", "--against", arguments.against),
            *("--seeds", "1", "--recipe", "train-any", *options(own, folder.parent, [])),
            *("--run-dir", str(run), *(["--resume"] if run.exists() else [])),
        )
        result = json.loads(document)
        rows += [
            {"draw": draw, **{key: row[key] for key in ("arch", "policy", "mode", "test_top1")}}
            for row in result["rows"]
        ]
        checked = PolicyBundle.load(bundle).manifest.verification
        checks[draw] = None if checked is None else checked.model_dump(mode="json")
        settings = {
            "search": result["bundles"][0]["search"],
            "versions": result["versions"],
            "hardware": result["hardware"],
        }
        text = json.dumps({"rows": rows, "checks": checks, **settings}, indent=1) + "\n"
        (HERE / f"{arguments.name}.json").write_text(text)


if __name__ == "__main__":
    main()
