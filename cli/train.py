"""`mapolicy train`: train a network with a bundle's policy, or with a baseline."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ..compare.stats import share_interval
from ..config import TrainConfig
from ..config.choices import MODES
from ..errors import UsageError
from ..registries import SEARCHED_POLICIES, policy_names
from ..runtime import rank_environment
from ..runtime.files import NETWORK_FILE, REFINED_FILE
from ..runtime.sanitize import printable
from . import bundles, completion, data_folder, display, next_command, options
from .grouped import grouped
from .outputs import slug
from .resolve import no_policy

if TYPE_CHECKING:
    from ..train import TrainResult


@dataclass(frozen=True)
class PolicyChoice:
    """How the network's policy is chosen, and what it may learn from."""

    panel: ClassVar[str] = "Policy"

    policy: Annotated[
        str | None,
        typer.Option(
            help=f"{options.either(policy_names())}.",
            show_default="learned with --bundle",
            autocompletion=completion.policies,
        ),
    ] = None
    mode: Annotated[str | None, typer.Option(help=f"{options.either(MODES)}.", show_default="frozen")] = None
    include_validation: options.IncludeValidation = False
    allow_dataset_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-dataset-mismatch",
            help="Accept a bundle of another data set, without its split: the policy may have learned from test "
            "images.",
        ),
    ] = False

    def settings(self) -> dict[str, Any]:
        """The configuration's settings; None where an option was not given."""
        return {"policy": self.policy, "mode": self.mode, "include_validation": self.include_validation or None}


@grouped
def train(
    *,
    dataset: options.DatasetOfBundle = None,
    bundle: Annotated[str | None, typer.Option(help=f"The policy: {options.SOURCES}", metavar="FILE")] = None,
    arch: Annotated[str | None, typer.Option(help="timm name of the network to train.")] = None,
    choice: PolicyChoice,
    checks: options.BundleChecks,
    settings: options.StageSettings,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The refined bundle, with --mode finetune.",
            metavar="FILE",
            show_default=f"{REFINED_FILE} in the run folder",
        ),
    ] = None,
    run: options.Run,
    output: options.Output,
) -> None:
    """Train a network with a bundle's policy or with a baseline.

    The policy stays frozen, or goes on learning with --mode finetune.

    Example: mapolicy train --bundle artifacts/c100.safetensors --arch resnet18
    """
    started = time.monotonic()
    opened = None if bundle is None else checks.open(bundle)
    file = None if opened is None else opened.policy
    from_bundle = None if file is None else file.data_settings()
    config, recipe = settings.resolve(TrainConfig, arch, dataset, from_bundle, **choice.settings())
    config = data_folder.with_known_folder(config, opened, dataset is not None)
    if config.mode != "finetune":
        for flag, given in (("--fast", settings.fast), ("--out", out is not None)):
            if given:
                raise UsageError(flag, "only fine-tuning learns a policy", f"add --mode finetune or leave {flag} out")
    if file is None and choice.policy is None and choice.mode is None and config.policy in SEARCHED_POLICIES:
        raise UsageError("--policy", "neither a policy nor a bundle was named", no_policy(config.dataset))
    config.check_bundle(file is not None, file is not None and not file.has_network, choice.allow_dataset_mismatch)
    label = config.policy if config.policy != "learned" else config.mode
    name = data_folder.dataset_slug(config.dataset, config.data_dir)
    folder = run.folder(f"train-{name}-{slug(config.arch)}-{label}-seed{config.seed}")
    if config.mode == "finetune":
        out = out or folder / REFINED_FILE
    reporter, listeners = run.begin(folder, out, recipe)

    from ..distributed import process_group
    from ..runtime.device import resolve_device
    from ..train import forecast_training, train_network

    if opened is not None and opened.fetched.origin != bundle:
        reporter.facts = {**reporter.facts, "bundle": opened.fetched.origin}  # which commit a branch's name stood for
    built = None if opened is None else bundles.build(opened)
    with process_group(resolve_device(config.device), config.patience_seconds):
        learns = config.mode == "finetune"
        (config,), chosen = data_folder.with_fitting_batches([config], [recipe], settings.typed(), learns)
        reporter.facts = {**chosen, **reporter.facts}
        if run.dry_run:
            with display.note_if_long(f"building {config.arch} and measuring its first iterations", run.quiet):
                expected = forecast_training(config, built, reporter, choice.allow_dataset_mismatch)
        else:
            result = train_network(
                config, built, listeners, folder, run.resume, run.force, choice.allow_dataset_mismatch, out=out
            )
    if rank_environment.rank() > 0:
        return
    if run.dry_run:
        display.print_forecast(expected, config.arch, recipe, output.as_json, chosen, {"chosen": chosen})
        return
    refined = {"refined_bundle": str(out), "refined_digest": result.refined.digest} if out and result.refined else {}
    facts = {**reporter.result, "command_seconds": time.monotonic() - started}
    if output.as_json:
        display.print_json({"run": str(folder), **facts, **refined})
        return
    print(f"{printable(accuracy_sentence(config, result, facts['test_images']))}\n")
    files = {"network": str(folder / NETWORK_FILE)}
    files["to use it"] = f"{next_command.command('predict', str(folder))} IMAGE..."
    files |= {name.replace("_", " "): text for name, text in refined.items()}
    if built is not None and config.policy == "learned" and not choice.allow_dataset_mismatch:
        files["whether it helped"] = next_command.whether_it_helped(
            config, str(bundle), built.data_settings(), settings.recipe, checks.limits or ()
        )
    display.print_figures(files)
    print("\ndetails")
    digest = {} if result.digest is None else {"bundle's digest": result.digest}
    figures = _figures(config, result, facts, built.origin if built else "")
    display.print_figures(figures | {"run folder": str(folder)} | digest)


def accuracy_sentence(config: TrainConfig, result: "TrainResult", images: int) -> str:
    """What a training reached, with an interval and with what the interval leaves out."""
    low, high = share_interval(result.test_top1, images)
    policy = f"{config.policy}, {config.mode}" if config.policy == "learned" else config.policy
    return (
        f"{config.arch}, trained with policy {policy}, is right about {result.test_top1:.1f} % of {images} test images "
        f"(95 % interval {low:.1f} to {high:.1f} from their number alone; other seeds differ too)."
    )


def _figures(config: TrainConfig, result: "TrainResult", facts: Mapping[str, Any], origin: str) -> dict[str, str]:
    lines = {
        "network": config.arch,
        "policy": f"{origin}, {config.mode}" if config.policy == "learned" else config.policy,
        "test top-1": f"{result.test_top1:.2f} %",
        "test top-5": f"{result.test_top5:.2f} %",
        **display.class_figures(result.test),
        "meta-validation top-1": "trained on" if result.validation_top1 is None else f"{result.validation_top1:.2f} %",
        "weights' spread": f"{result.weight_spread:.4f}",
        "cost": display.ratio(result.cost_ratio),
        "time": display.whole_time(facts["command_seconds"], facts["seconds"]),
    }
    if result.dataset_mismatch:
        lines["data set"] = f"not the bundle's: {'; '.join(result.dataset_mismatch)}"
    return lines
