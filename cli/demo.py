"""`mapolicy demo`: search policies on a small data set that needs no download, and measure whether they help."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import SearchConfig, TrainConfig
from . import comparison_table, display, options, outputs, run_progress
from .grouped import grouped
from .resolve import resolve

if TYPE_CHECKING:
    from ..policy.policy_bundle import PolicyBundle

DATASET, PROXY, ARCH = "digits", "wrn10_1", "wrn16_1"
AGAINST = ("none", "trivialaugment", "uniform")
SPLITS, JOBS = 4, 2
FEW = {"train_per_class": 15.0, "validation_per_class": 10.0, "test_per_class": 140.0}
SETTINGS = FEW | {"operation_space": "wide", "batch_size": 150, "epochs": 200, "threads": 1}
WHAT_IT_IS = f"""\
Few training images (15 of each digit) and an operation space whose strongest levels destroy a digit. In each of
{SPLITS} splits a policy is searched with {PROXY}; then {ARCH} is trained with it, without augmentation, with
TrivialAugment and with uniform draws of the same operations. 1,400 test images, which no search has seen."""


@grouped
def demo(
    *,
    out: Annotated[Path, typer.Option(help="The first split's bundle.", metavar="FILE")] = Path(
        "artifacts/digits.safetensors"
    ),
    run_dir: Annotated[Path, typer.Option(help="Folder of the runs.", metavar="DIR")] = Path("runs/demo"),
    quiet: options.Quiet = False,
    output: options.Output,
) -> None:
    """Search, reuse and compare policies on handwritten digits.

    Runs offline, in under three minutes on two CPU cores. Overwrites the bundle and the runs of an earlier demo.
    """
    searches = [run_dir / f"search{split}" for split in range(SPLITS)]
    outputs.ensure_writable(out, "--out", force=True)
    for folder in searches:
        outputs.ensure_run_folder(folder, force=True)
    outputs.ensure_run_folder(run_dir / "compare", force=True, comparison=True)

    from ..compare.comparison import compare_policies
    from ..search import search_policy

    reporter, bundles = run_progress.reporter(quiet), []
    for split, folder in enumerate(searches):
        config, _ = resolve(SearchConfig, PROXY, DATASET, flags=SETTINGS | {"split_seed": split, "seed": split})
        bundles.append(search_policy(config, reporter, folder, overwrite=True))
    bundles[0].save(out)
    own = {name: SETTINGS[name] for name in ("batch_size", "epochs", "threads")}
    target, _ = resolve(TrainConfig, ARCH, DATASET, bundle_settings=bundles[0].data_settings(), flags=own)
    folder = run_dir / "compare"
    found = compare_policies(bundles, [target], folder, AGAINST, jobs=JOBS, reporter=reporter, overwrite=True)
    if output.as_json:
        display.print_json({"bundle": str(out), "learned": _learned(bundles[0]), **found.document()})
        return
    print(f"{WHAT_IT_IS}\n")
    comparison_table.show(found, folder)
    print(f"\nWhat was learned in the first split ({out}):")
    print("\n".join(f"  {sentence}" for sentence in _learned(bundles[0])))
    print("\nyour own images, one folder a class  mapolicy search folder:PHOTOS")


def _learned(bundle: "PolicyBundle") -> list[str]:
    """What a bundle's policy learned, in sentences."""
    from ..bundle.findings import Findings

    assert bundle.log_levels is not None
    return list(Findings.of(bundle.manifest, bundle.log_levels.double().numpy()).learned)
