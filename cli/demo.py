"""`mapolicy demo`: search, reuse and compare a policy on a small data set that needs no download."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..compare.stats import share_interval
from ..config import SearchConfig, TrainConfig
from . import display, options, outputs
from .grouped import grouped
from .resolve import resolve

if TYPE_CHECKING:
    from ..policy.policy_bundle import PolicyBundle

DATASET, PROXY, ARCH = "digits", "wrn10_1", "resnet10t"
POLICIES = ("learned", "none", "trivialaugment")
SHOWN = 5


@grouped
def demo(
    *,
    out: Annotated[Path, typer.Option(help="The bundle.", metavar="FILE")] = Path("artifacts/digits.safetensors"),
    run_dir: Annotated[Path, typer.Option(help="Folder of the runs.", metavar="DIR")] = Path("runs/demo"),
    quiet: options.Quiet = False,
    output: options.Output,
) -> None:
    """Search, reuse and compare a policy on handwritten digits.

    Runs offline, in under three minutes on two CPU cores. Overwrites the bundle and the runs of an earlier demo.
    """
    folders = {name: run_dir / name for name in ("search", *POLICIES)}
    outputs.ensure_writable(out, "--out", force=True)
    for folder in folders.values():
        outputs.ensure_run_folder(folder, force=True)
    search_config, _ = resolve(SearchConfig, PROXY, DATASET)

    from ..policy.policy_bundle import PolicyBundle
    from ..search import search_policy
    from ..train import train_network

    reporter = display.reporter(quiet)
    search_policy(search_config, reporter, folders["search"], overwrite=True).save(out)
    searched = reporter.result
    bundle = PolicyBundle.load(out)
    trained = {}
    for policy in POLICIES:
        settings = bundle.data_settings()
        config, _ = resolve(TrainConfig, ARCH, DATASET, bundle_settings=settings, flags={"policy": policy})
        train_network(config, bundle, reporter, folders[policy], overwrite=True)
        trained[policy] = reporter.result
    likeliest = {"learned": _likeliest(bundle)}
    if output.as_json:
        rows = [{**result, "likeliest": likeliest.get(policy, [])} for policy, result in trained.items()]
        display.print_json({"bundle": str(out), "search": dict(searched), "rows": rows})
        return
    _print({f"search ({PROXY})": searched, **trained}, likeliest, out)


def _print(results: Mapping[str, Mapping[str, Any]], likeliest: Mapping[str, list[str]], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"{_sentence({name: result for name, result in results.items() if 'test_top1' in result})}\n")
    table = Table(title=f"{ARCH} on {DATASET}; policy searched with {PROXY}, written to {out}", title_justify="left")
    table.add_column("policy")
    for name in ("test top-1 %", "weights' spread", "x plain step", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("likeliest transformations (p_jk, %)")
    for name, result in results.items():
        table.add_row(
            name,
            f"{result['test_top1']:.2f}" if "test_top1" in result else f"({result['validation_top1']:.2f})",
            f"{result['weight_spread']:.4f}",
            "-" if result["cost_ratio"] is None else f"{result['cost_ratio']:.2f}",
            f"{result['seconds']:.1f}",
            "\n".join(likeliest.get(name, [])),
        )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    console.print("In brackets: the proxy's accuracy on the meta-validation split, which the policy was learned on.")
    print("\nyour own images, one folder a class  mapolicy search folder:PHOTOS --proxy wrn16_2")


def _sentence(trained: Mapping[str, Mapping[str, Any]]) -> str:
    """What the trainings reached, and how much of a difference chance alone makes."""
    accuracies = ", ".join(f"{result['test_top1']:.1f} % with policy {name}" for name, result in trained.items())
    images = next(iter(trained.values()))["test_images"]
    low, high = share_interval(max(result["test_top1"] for result in trained.values()), images)
    return (
        f"{ARCH} is right about {accuracies}, of {images} test images. Each comes from one seed, and the 95 % interval "
        f"of the best is {low:.1f} to {high:.1f}: differences of that size may be chance."
    )


def _likeliest(bundle: "PolicyBundle") -> list[str]:
    from ..policy.sampler import likeliest

    return [f"{first}, {second}  {100 * p:.3f}" for first, second, p in likeliest(bundle.probabilities, SHOWN)]
