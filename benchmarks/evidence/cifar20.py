"""CIFAR-100 where no operation harms: 20 random classes, 100 training images of each or more, all 2,000 test images.

python benchmarks/evidence/cifar20.py --data-dir DIR --work-dir runs/evidence --draws 4

DIR holds `cifar100/train` and `cifar100/test`. Draw number i takes its classes and images from seed i; a policy is
searched on it and compared with others on the networks of `--arch`, of which the first is the proxy; without a search
(`--free`) only those that need none are compared. What stands in the work folder is kept, so that a command
that was stopped goes on where it was; the figures go to benchmarks/evidence/cifar20.json, or NAME.json.
"""

import argparse
import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from table import HERE, Table, mapolicy, options

from mapolicy import PolicyBundle
from mapolicy.runtime.machine import hardware, versions

CLASSES = 20
SETTINGS = {
    "image_size": 16,
    "base_augmentation": "flip_crop",
    "cutout": 0,
    "train_per_class": 90,
    "validation_per_class": 10,
    "test_per_class": 0,
}


def drawn_folder(data_dir: Path, work: Path, draw: int, images_per_class: int) -> Path:
    """Links to the images of a draw, by class."""
    folder = work / (f"cifar20-{draw}" if images_per_class == 100 else f"cifar20-{images_per_class}-{draw}")
    source, chooser = data_dir.resolve() / "cifar100", random.Random(draw)
    for name in chooser.sample(sorted(path.name for path in (source / "train").iterdir()), CLASSES):
        images = sorted((source / "train" / name).iterdir())
        for split, chosen in (
            ("train", chooser.sample(images, images_per_class)),
            ("test", sorted((source / "test" / name).iterdir())),
        ):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for image in chosen:
                link = folder / split / name / image.name
                if not link.is_symlink():
                    link.symlink_to(image)
    return folder


def _trained(folder: Path, table: Table, policies: str, draw: int) -> list[dict[str, object]]:
    """Rows of policies that need no search, which `mapolicy compare` does not compare alone."""
    rows: list[dict[str, object]] = []
    for arch, policy in product(table.archs, policies.split(",")):
        run = folder.parent / f"{folder.name}-{arch}-{table.epochs}-{policy}"
        document = mapolicy(
            *("train", f"folder:{folder.name}", "--policy", policy, "--arch", arch, "--recipe", "train-any"),
            *options(table, folder.parent, []),
            *("--run-dir", str(run), "--force"),
        )
        row = json.loads(document)
        rows.append({"draw": draw, "arch": arch, "policy": policy, "mode": None, "test_top1": row["test_top1"]})
    return rows


def main() -> None:
    """Search and compare what is not there yet, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="the first draw")
    parser.add_argument("--against", default="none,uniform,trivialaugment")
    parser.add_argument("--modes", default="frozen", help="of the learned policies")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE: another setting, of the searches alone")
    parser.add_argument("--name", default="cifar20", help="of the results, where settings differ")
    parser.add_argument("--arch", action="append", help="networks, the proxy first; wrn10_1 otherwise")
    parser.add_argument("--searched-for", help="the name of results whose bundles are used")
    parser.add_argument("--images", type=int, default=100, help="of each class, a tenth of them for meta-validation")
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--model-arg", action="append", default=[], help="KEY=VALUE, of the networks")
    parser.add_argument("--free", action="store_true", help="no search, and no policy that needs one")
    arguments = parser.parse_args()
    rows, found, checks = [], {}, {}
    archs = arguments.arch or ["wrn10_1"]
    model_args = dict(change.split("=", 1) for change in arguments.model_arg)
    held_out = arguments.images // 10
    settings = SETTINGS | {
        "image_size": arguments.image_size,
        "train_per_class": arguments.images - held_out,
        "validation_per_class": held_out,
    }
    for draw in range(arguments.first, arguments.first + arguments.draws):
        folder = drawn_folder(arguments.data_dir, arguments.work_dir, draw, arguments.images)
        table = Table(folder.name, settings, arguments.epochs, model_args, tuple(archs), bundles=1)
        look = {key: settings[key] for key in ("image_size", "base_augmentation", "cutout")}
        own = table if arguments.free else replace(table, settings=look)
        work = arguments.work_dir / arguments.name
        work.mkdir(exist_ok=True)
        searches = arguments.work_dir / (arguments.searched_for or arguments.name)
        bundle, run = searches / f"bundle{draw}.safetensors", work / f"compare{draw}"
        if not arguments.free and not bundle.exists():
            mapolicy(
                *("search", f"folder:{folder.name}", "--proxy", archs[0], "--recipe", "search-any"),
                *options(table, folder.parent, arguments.set),
                *("--seed", str(draw), "--out", str(bundle)),
                *("--run-dir", str(searches / f"search{draw}"), "--force"),
            )
        if arguments.free:
            rows += _trained(folder, own, arguments.against, draw)
            here = {"versions": versions(), "hardware": hardware(torch.device("cpu")) | {"threads": 1}}
            (HERE / f"{arguments.name}.json").write_text(json.dumps({"rows": rows, **here}, indent=1) + "\n")
            continue
        document = mapolicy(
            *("compare", "--bundle", str(bundle), *(part for arch in archs for part in ("--arch", arch))),
            *("--against", arguments.against, "--mode", arguments.modes),
            *("--seeds", "1", "--recipe", "train-any"),
            *options(own, folder.parent, []),
            *("--run-dir", str(run), *(["--resume"] if run.exists() else [])),
        )
        result = json.loads(document)
        rows += [
            {"draw": draw, **{key: row[key] for key in ("arch", "policy", "mode", "test_top1")}}
            for row in result["rows"]
        ]
        checked = PolicyBundle.load(bundle).manifest.verification
        checks[draw] = None if checked is None else checked.model_dump(mode="json")
        found = {
            "search": result["bundles"][0]["search"],
            "versions": result["versions"],
            "hardware": result["hardware"],
        }
        text = json.dumps({"rows": rows, "checks": checks, **found}, indent=1) + "\n"
        (HERE / f"{arguments.name}.json").write_text(text)


if __name__ == "__main__":
    main()
