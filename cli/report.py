"""`mapolicy report`: a page that shows what a policy learned."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..bundle.load import SearchedFile
from ..bundle.manifest import Manifest
from ..config import TrainConfig
from ..errors import InputError, UsageError
from ..runtime.files import CONFIG_FILE, write_atomically
from . import display, options

if TYPE_CHECKING:
    import torch

    from ..data.splits import DataSplits
    from ..policy.policy_bundle import PolicyBundle


def report(
    what: Annotated[
        list[str],
        typer.Argument(help=f"A bundle ({options.SOURCES}), the folder of its run, or both.", metavar="FILE|RUN..."),
    ],
    out: Annotated[Path, typer.Option(help="The page.", metavar="FILE")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Also write every picture here, as PNG and SVG.", metavar="DIR")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another bundle; the page says what changed since it.", metavar="FILE")
    ] = None,
    data_dir: options.DataDir = None,
    samples: Annotated[
        int, typer.Option(help="Augmented images to weigh in each study of the data set.", min=28, max=100_000)
    ] = 1024,
    device: options.Device = None,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show what a policy learned as one page of HTML, which opens anywhere and loads nothing.

    Example: mapolicy report artifacts/digits.safetensors runs/search-digits-wrn10_1-seed0 --out digits.html
    """
    started = time.monotonic()
    runs = [name for name in what if (Path(name) / CONFIG_FILE).is_file()]
    bundles = [name for name in what if name not in runs]
    for name in bundles:
        if Path(name).is_dir():
            raise InputError(
                name, f"is no run folder: it has no {CONFIG_FILE}", "name a run folder, or a bundle's file"
            )
    if len(runs) > 1 or len(bundles) > 1:
        why = f"{len(bundles)} bundles and {len(runs)} run folders were named"
        raise UsageError("FILE|RUN", why, "name one bundle, one run folder, or one of each; --against names another")
    asked = {"--against": against, "--expect-digest": expect_digest, "--data-dir": data_dir}
    if not bundles and (idle := [flag for flag, value in asked.items() if value is not None]):
        raise UsageError(idle[0], "there is no bundle that it could be about", "name the run's bundle too")
    options.claim(out, force, resume=False, flag="--out")
    if figures is not None:
        options.claim_folder(figures, force, "--figures")
    # The formats are checked before torch is imported, which takes seconds.
    opened = options.opened(bundles[0], expect_digest, limits) if bundles else None
    other = None if against is None else options.opened(against, None, limits)
    for each in (opened, other):
        if against is not None and each is not None and not isinstance(each.policy, SearchedFile):
            raise InputError(each.fetched.source, "is a dataset-level policy", "--against compares searched ones")

    from ..report.gather import gather
    from ..report.metrics import read_run
    from ..report.page import page, picture_files
    from ..runtime.device import resolve_device

    where = resolve_device(device or "auto")
    run = read_run(Path(runs[0])) if runs else None
    bundle = None if opened is None or not isinstance(opened.policy, SearchedFile) else options.searched(opened)
    splits, no_data = (None, "") if bundle is None else _data(bundle, data_dir, where)
    other_bundle = None if other is None else options.searched(other)
    gathered = gather(opened, bundle, run, splits, no_data, other_bundle, samples, where)
    content = page(gathered)
    pictures = {} if figures is None else picture_files(gathered)
    write_atomically(out, content)
    for name, picture in pictures.items():
        assert figures is not None
        write_atomically(figures / name, picture)
    facts = {
        "report": str(out),
        "digest": gathered.digest or None,
        "bytes": len(content),
        "samples": 0 if gathered.samples is None else len(gathered.samples.weights),
        "without_data": gathered.no_data or None,
        "figures": [str(Path(figures or "") / name) for name in pictures],
        "seconds": time.monotonic() - started,
    }
    if as_json:
        display.print_json(facts)
        return
    lines = {
        "report": str(out),
        "digest": gathered.digest,
        "size": f"{len(content):,} bytes",
        "samples": f"{facts['samples']} weighed" if facts["samples"] else f"none: {no_data}" if no_data else "",
        "figures": f"{len(pictures)} files in {figures}" if pictures else "",
        "time": display.duration(time.monotonic() - started),
    }
    display.print_figures({name: value for name, value in lines.items() if value})


def _data(bundle: "PolicyBundle", data_dir: str | None, device: "torch.device") -> "tuple[DataSplits | None, str]":
    """The bundle's data set, or why the page does without; what the user has named must be there."""
    from ..report.samples import open_splits

    try:
        return open_splits(bundle, data_config(bundle.manifest, data_dir), device), ""
    except (InputError, UsageError) as problem:
        if data_dir is not None:
            raise
        # Not which folder was looked into: the page is for others.
        return None, f"{bundle.manifest.dataset.name}: {problem.why}; --data-dir says where it is."


def data_config(manifest: Manifest, data_dir: str | None) -> TrainConfig:
    """How the bundle's data set is read."""
    config, _ = options.resolve(
        TrainConfig, None, "resnet18", None, manifest.data_settings(), {"data_dir": data_dir}, None, None
    )
    return config
