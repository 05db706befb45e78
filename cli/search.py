"""`mapolicy search`: search a policy and write its bundle."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import SearchConfig
from ..registries import DATASETS
from ..runtime import rank_environment
from . import display, options
from .grouped import grouped
from .outputs import slug


@grouped
def search(
    *,
    dataset: Annotated[str | None, typer.Argument(help=f"Data set: {options.either(tuple(DATASETS))}.")] = None,
    proxy: Annotated[str | None, typer.Option(help="timm name of the proxy network.")] = None,
    settings: options.StageSettings,
    extractor_dtype: options.ExtractorDtype = None,
    verify: options.Verify = None,
    out: Annotated[Path | None, typer.Option(help="The bundle.", metavar="FILE")] = None,
    run: options.Run,
    output: options.Output,
) -> None:
    """Search a policy with a proxy network and write it to a bundle.

    Example: mapolicy search cifar100 --proxy wrn28_10
    """
    config, recipe = settings.resolve(SearchConfig, proxy, dataset, extractor_dtype=extractor_dtype, verify=verify)
    name = slug(config.dataset)
    out = out or Path("artifacts") / f"{name}.safetensors"
    folder = run.folder(f"search-{name}-{slug(config.proxy)}-seed{config.seed}")
    reporter, listeners = run.begin(folder, out, recipe)

    from ..distributed import process_group
    from ..runtime.device import resolve_device
    from ..search import forecast_search, search_policy

    with process_group(resolve_device(config.device), config.patience_seconds):
        if run.dry_run:
            expected = forecast_search(config, reporter)
        else:
            search_policy(config, listeners, folder, run.resume, run.force, out)
    if rank_environment.rank() > 0:
        return
    if run.dry_run:
        display.print_forecast(expected, config.proxy, recipe, output.as_json)
        return
    result = reporter.result
    output.show({"bundle": str(out), "run": str(folder), **result}, _figures(config, result, out, folder))


def _figures(config: SearchConfig, result: Mapping[str, Any], out: Path, folder: Path) -> dict[str, str]:
    # A bundle knows the name of a folder of images, not its place.
    typed = [config.dataset] if config.dataset.startswith("folder:") else []
    effect = display.effect_on_weights(result["effect_on_weights"]) if "effect_on_weights" in result else {}
    return {
        "bundle": str(out),
        "digest": result["digest"],
        "proxy": f"{config.proxy}, {result['validation_top1']:.2f} % top-1 on the meta-validation split",
        **effect,
        "alpha": f"{result['alpha']:.4f}",
        "entropy of p_jk": f"{result['entropy']:.5f} of uniform",
        **display.with_interval(result, "weight_spread", "of 95 % of the last epoch's batches"),
        **display.weight_shares(result),
        **display.signal_to_noise(result),
        "cost": display.ratio(result["cost_ratio"]),
        "time": display.duration(result["seconds"]),
        "run folder": str(folder),
        "next": shlex.join(["mapolicy", "train", *typed, "--bundle", str(out), "--arch", "ARCH"]),
    }
