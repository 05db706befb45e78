"""Options that several commands share, and how they become a configuration."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .. import recipes
from ..bundle.dataset_level import DatasetPolicy
from ..bundle.download import redacted
from ..bundle.limits import Limits
from ..bundle.load import Opened, SearchedFile, open_bundle
from ..bundle.manifest_base import parse_digest
from ..bundle.source import BUNDLE_FILE
from ..config import FAST, RunConfig
from ..errors import InputError, UsageError
from ..runtime.files import CONFIG_FILE, check_writable, has_files, remove_litter
from ..runtime.lock import check_free

if TYPE_CHECKING:
    from ..policy.policy_bundle import PolicyBundle

Config = TypeVar("Config", bound=RunConfig)

SOURCES = "a file, hf://NAMESPACE/NAME[/FILE][@REVISION] or https://..."
BundleArgument = Annotated[str, typer.Argument(help=f"The bundle: {SOURCES}", metavar="FILE")]
ExtractorDtype = Annotated[
    str | None, typer.Option(help="What the extractor is stored in: float32, float16 or bfloat16.")
]
Recipe = Annotated[str | None, typer.Option(help="Recipe by name, or a TOML file.", metavar="NAME|FILE")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override one setting.", metavar="KEY=VALUE")]
ModelArguments = Annotated[
    list[str] | None, typer.Option("--model-arg", help="Argument of the network's constructor.", metavar="KEY=VALUE")
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training split.")]
DataDir = Annotated[str | None, typer.Option(help="Where data sets are read from and downloaded to.", metavar="DIR")]
RunDir = Annotated[Path | None, typer.Option(help="Folder of this run's log and checkpoints.", metavar="DIR")]
Fast = Annotated[
    bool, typer.Option("--fast", help=f"The cheaper steps: {', '.join(f'{key}={FAST[key]}' for key in FAST)}.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything but the splits.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Leave out images that cannot be decoded.")]
OnDivergence = Annotated[
    str | None,
    typer.Option(help="A loss that is not finite: stop, or rollback to the last checkpoint."),
]
Loggers = Annotated[
    list[str] | None, typer.Option("--logger", help="Log there too: tensorboard or wandb; repeatable.", metavar="NAME")
]
ExpectDigest = Annotated[
    str | None,
    typer.Option(
        help="Refuse a bundle with another digest.",
        metavar="SHA256",
        callback=lambda text: None if text is None else parse_digest(text),
    ),
]
BundleLimits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="Allow a large bundle: file_bytes, header_bytes, tensors, parameters, pixels.",
        metavar="NAME=NUMBER",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what the run will take, after a few iterations; write nothing.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's checkpoint.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def resolve(
    kind: type[Config],
    recipe: str | None,
    network: str | None,
    dataset: str | None,
    bundle_settings: Mapping[str, Any],
    flags: Mapping[str, Any],
    settings: list[str] | None,
    model_arguments: list[str] | None,
    fast: bool = False,
) -> tuple[Config, str]:
    """The configuration: recipe, then bundle, then flags and `--set`; and where it began: the recipe's name.

    Args:
        kind: of the stage.
        recipe: name or file; None finds the one of data set and network.
        network: from the command line; None takes the recipe's.
        dataset: likewise.
        bundle_settings: what the bundle fixes.
        flags: settings by name; None stands for a flag that was not given.
        settings: `key=value` of `--set`.
        model_arguments: `key=value` of `--model-arg`.
        fast: take the settings that `--fast` stands for; `--set` wins over them.
    """
    given = {key: value for key, value in flags.items() if value is not None} | dict(FAST if fast else {})
    given |= dict(_key_value("--set", text) for text in settings or [])
    if arguments := dict(_key_value("--model-arg", text) for text in model_arguments or []):
        given["model_args"] = arguments
    named = dataset or given.get("dataset") or bundle_settings.get("dataset")
    if recipe is None and named is None:
        raise UsageError("DATASET", "no data set was named", "name one, or give --bundle or --recipe")
    if dataset or "dataset" in given:  # what the user names may be fetched
        bundle_settings = {key: value for key, value in bundle_settings.items() if key != "download"}
    source, values = recipes.load(recipe) if recipe else recipes.find(kind.stage, str(named), network)
    values = {**values, **bundle_settings}
    if named is not None:
        values["dataset"] = named
    if network is not None:
        values[kind.network_field] = network
    kind.from_mapping(
        {**values, "dataset": values.get("dataset", "?"), kind.network_field: values.get(kind.network_field, "?")},
        source,
        InputError,
    )
    return kind.from_mapping({**values, **given}, "command line", UsageError), source


def opened(reference: str | Path, expect_digest: str | None, limits: list[str] | None) -> Opened:
    """A bundle of either kind and its file, under the limits that `--limit` raises (`opening.open_bundle`)."""
    return open_bundle(reference, expect_digest, Limits.of(limits or ()))


def built(opened: Opened) -> "PolicyBundle | DatasetPolicy":
    """What a run takes, once the architecture is checked too; imports torch.

    Raises:
        InputError: the extractor's tensors are not those of its architecture.
    """
    if isinstance(opened.policy, DatasetPolicy):
        return opened.policy
    from ..policy.policy_bundle import PolicyBundle

    file, fetched = opened.policy, opened.fetched
    return PolicyBundle.from_raw(file.manifest, file.tensors, fetched.source, opened.limits, fetched.origin)


def searched(opened: Opened) -> "PolicyBundle":
    """A searched bundle with its networks; imports torch.

    Raises:
        InputError: a dataset-level policy, which weighs nothing, or an extractor that is not its architecture's.
    """
    from ..policy.policy_bundle import PolicyBundle

    policy = built(opened)
    if isinstance(policy, PolicyBundle):
        return policy
    why = "is a dataset-level policy: all samples weigh the same"
    raise InputError(opened.fetched.source, why, "name a searched bundle; `mapolicy report` shows this one")


def checked(opened: Opened) -> None:
    """All that a first use would find out: the architecture, and whether the extractor gives finite features.

    Raises:
        InputError: the bundle could not be used.
    """
    if isinstance(opened.policy, SearchedFile):
        import torch

        searched(opened).build_extractor(torch.device("cpu"))


def claim(path: Path, force: bool, resume: bool, flag: str) -> None:
    """Refuse to overwrite an output, and find out now whether it can be written.

    Raises:
        UsageError: it exists, and neither --force nor --resume was given.
        EnvironmentFault: it cannot be written.
    """
    if path.exists() and path.is_file() and not (force or resume):
        raise UsageError(str(path), "exists", f"use --force or another {flag}")
    check_writable(path)
    remove_litter(path.parent, path.name)


def claim_folder(folder: Path, force: bool, flag: str) -> None:
    """Refuse to mix an output's files with others, and find out now whether they can be written.

    Raises:
        UsageError: the folder holds something, and --force was not given.
        EnvironmentFault: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not force)):
        raise UsageError(str(folder), "exists and is no empty folder", f"use --force or another {flag}")
    check_writable(folder / "probe")


def claim_run(folder: Path, force: bool, resume: bool) -> None:
    """Refuse to mix two runs in a folder.

    Raises:
        FolderInUseError: another run is in it.
        UsageError: the folder holds something, and neither --force nor --resume was given.
        EnvironmentFault: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(str(folder), "is no folder", "use another --run-dir")
    check_free(folder)
    if has_files(folder) and not (force or resume):
        raise UsageError(str(folder), "holds a run", "use --resume, --force or another --run-dir")
    check_writable(folder / CONFIG_FILE)


def slug(text: str) -> str:
    """A data set's name as a part of a file name: `folder:data/birds` becomes `birds`."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text.rstrip("/").split("/")[-1].split(":")[-1])


def file_name(reference: str) -> str:
    """`hf://ns/name@v1` and `https://host/name.safetensors?a=b` both become name.safetensors."""
    plain = redacted(reference)
    if plain.startswith("hf://"):
        parts = plain.removeprefix("hf://").partition("@")[0].split("/")
        plain = parts[-1] if len(parts) > 2 else f"{parts[-1]}.safetensors"
    return slug(plain) or BUNDLE_FILE


def _key_value(flag: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(flag, f"{text!r} is not KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
