"""`mapolicy demo`: the whole story on a small data set that needs no download."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import SearchConfig, TrainConfig
from . import display, options

if TYPE_CHECKING:
    from ..policy.policy_bundle import PolicyBundle

DATASET, PROXY, ARCH = "digits", "wrn10_1", "resnet10t"
POLICIES = ("learned", "none", "trivialaugment")
LISTED = 5


def demo(
    out: Annotated[Path, typer.Option(help="The bundle.", metavar="FILE")] = Path("artifacts/digits.safetensors"),
    run_dir: Annotated[Path, typer.Option(help="Folder of the runs.", metavar="DIR")] = Path("runs/demo"),
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Search a policy on handwritten digits with one network, reuse it to train another, and compare.

    Runs offline, on two CPU cores in under three minutes. An earlier demo's bundle and runs are overwritten.
    """
    folders = {name: run_dir / name for name in ("search", *POLICIES)}
    options.claim(out, force=True, resume=False, flag="--out")
    for folder in folders.values():
        options.claim_run(folder, force=True, resume=False)
    search_config, _ = options.resolve(SearchConfig, None, PROXY, DATASET, {}, {}, None, None)

    from ..policy.policy_bundle import PolicyBundle
    from ..search import search_policy
    from ..train import train_network

    reporter = display.reporter(quiet)
    bundle = search_policy(search_config, reporter, folders["search"], overwrite=True)
    bundle.save(out)
    search_result = reporter.result
    bundle = PolicyBundle.load(out)

    results = {}
    for policy in POLICIES:
        config, _ = options.resolve(
            TrainConfig, None, ARCH, DATASET, bundle.data_settings(), {"policy": policy}, None, None
        )
        train_network(config, bundle, reporter, folders[policy], overwrite=True)
        results[policy] = reporter.result
    likeliest = _likeliest(bundle)
    if as_json:
        rows = [{**result, "likeliest": likeliest if policy == "learned" else []} for policy, result in results.items()]
        display.print_json({"bundle": str(out), "search": dict(search_result), "rows": rows})
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{ARCH} on {DATASET}; policy searched with {PROXY}, written to {out}", title_justify="left")
    table.add_column("policy")
    for name in ("test top-1 %", "weights' spread", "x plain step", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("likeliest transformations (p_jk, %)")
    figures = [("search (" + PROXY + ")", search_result, "")]
    figures += [
        (policy, result, "\n".join(likeliest) if policy == "learned" else "") for policy, result in results.items()
    ]
    for name, result, transformations in figures:
        accuracy = f"{result['test_top1']:.2f}" if "test_top1" in result else f"({result['validation_top1']:.2f})"
        cost = "-" if result["cost_ratio"] is None else f"{result['cost_ratio']:.2f}"
        table.add_row(
            name, accuracy, f"{result['weight_spread']:.4f}", cost, f"{result['seconds']:.1f}", transformations
        )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    console.print("In brackets: the proxy on the meta-validation split, which the policy was learned on.")


def _likeliest(bundle: "PolicyBundle") -> list[str]:
    from ..policy.sampler import likeliest

    return [f"{first}, {second}  {100 * p:.3f}" for first, second, p in likeliest(bundle.probabilities, LISTED)]
