"""`mapolicy search`: search a policy and write its bundle."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bundle.findings import Findings, levels_document, verification_document
from ..config import SearchConfig
from ..runtime import rank_environment
from . import display, options
from .grouped import grouped
from .outputs import slug


@grouped
def search(
    *,
    dataset: options.DatasetArgument = None,
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
            bundle = search_policy(config, listeners, folder, run.resume, run.force, out)
    if rank_environment.rank() > 0:
        return
    if run.dry_run:
        display.print_forecast(expected, config.proxy, recipe, output.as_json)
        return
    result, manifest = reporter.result, bundle.manifest
    log_levels = None if bundle.log_levels is None else bundle.log_levels.double().numpy()
    if not output.as_json:
        display.print_findings(Findings.of(manifest, log_levels))
    learned = {
        "levels": levels_document(manifest, log_levels),
        "verification": verification_document(manifest),
    }
    document = {"bundle": str(out), "run": str(folder), **result, **learned}
    output.show(document, _figures(config, result, out, folder))


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
        **({} if config.weighting == "equal" else display.spread_of_weights(result)),
        **display.signal_to_noise(result),
        "cost": display.ratio(result["cost_ratio"]),
        "time": display.duration(result["seconds"]),
        "run folder": str(folder),
        "next": shlex.join(["mapolicy", "train", *typed, "--bundle", str(out), "--arch", "ARCH"]),
    }
