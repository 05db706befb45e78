"""What `mapolicy search folder:PHOTOS` finds within ten CPU minutes, and what its file is worth.

python benchmarks/evidence/ten_minutes.py FOLDER --name signs-ten-minutes --work-dir runs/evidence

The command chooses everything by itself; only the seed, the split and one thread are given. `mapolicy compare` then
trains the search's own network anew, for as many epochs, with the file's policy and with those that need no search. The
test images are those that every run draws from the folder. Split number i has seed i, counted from `--first`. What
stands in the work folder is kept, so that a command that was stopped goes on where it was; the figures go to
benchmarks/evidence/NAME.json.
"""

import argparse
import json
import resource
import time
import tomllib
from pathlib import Path

from table import HERE, mapolicy


def cpu_seconds() -> float:
    """CPU time of all commands that this process has run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Search and compare what is not there yet, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a class a folder")
    parser.add_argument("--name", required=True, help="of the results")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed and split of the first search")
    parser.add_argument("--against", default="uniform,trivialaugment,none")
    arguments = parser.parse_args()
    work = arguments.work_dir / arguments.name
    work.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder.resolve()
    dataset, where, rows, searches, result = f"folder:{folder.name}", ("--data-dir", str(folder.parent)), [], [], {}
    for split in range(arguments.first, arguments.first + arguments.splits):
        bundle, run = work / f"bundle{split}.safetensors", work / f"compare{split}"
        figures = work / f"search{split}.json"
        if not bundle.exists():
            used, start = cpu_seconds(), time.monotonic()
            document = mapolicy(
                *("search", dataset, *where, "--budget", arguments.budget, "--seed", str(split), "--out", str(bundle)),
                *("--set", f"split_seed={split}", "--set", "threads=1"),
                *("--run-dir", str(work / f"search{split}"), "--force"),
            )
            spent = {"cpu_seconds": cpu_seconds() - used, "seconds": time.monotonic() - start}
            figures.write_text(json.dumps(json.loads(document) | spent))
        found = json.loads(figures.read_text())
        config = tomllib.loads((work / f"search{split}" / "config.toml").read_text())
        document = mapolicy(
            *("compare", *where, "--bundle", str(bundle), "--arch", config["proxy"], "--epochs", str(config["epochs"])),
            *(part for key, value in config["model_args"].items() for part in ("--model-arg", f"{key}={value}")),
            *("--against", arguments.against, "--seeds", "1", "--set", "threads=1"),
            *("--run-dir", str(run), *(["--resume"] if run.exists() else [])),
        )
        result = json.loads(document)
        rows += [
            {"split": split, **{key: row[key] for key in ("arch", "policy", "mode", "test_top1", "test_images")}}
            for row in result["rows"]
        ]
        kept = ("cpu_seconds", "seconds", "verification")
        chosen = {key: config[key] for key in ("proxy", "image_size", "batch_size", "epochs", "base_augmentation")}
        searches.append({"split": split, **chosen, **{key: found.get(key) for key in kept}})
    document = {
        "budget": arguments.budget,
        "searches": searches,
        "rows": rows,
        **{key: result[key] for key in ("versions", "hardware")},
    }
    (HERE / f"{arguments.name}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
