"""`mapolicy report`: a page that shows what a policy learned."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ..bundle.findings import what_it_sees
from ..bundle.load import Opened
from ..bundle.manifest import Manifest
from ..config import TrainConfig
from ..errors import InputError, UsageError
from ..runtime.files import CONFIG_FILE, write_atomically
from . import bundles, display, options, outputs
from .grouped import grouped
from .resolve import resolve

if TYPE_CHECKING:
    import torch

    from ..data.splits import DataSplits
    from ..policy.policy_bundle import PolicyBundle
    from ..report.gather import Report


@dataclass(frozen=True)
class Files:
    """Files that the report writes."""

    panel: ClassVar[str] = "Files"

    out: Annotated[Path, typer.Option(help="The page.", metavar="FILE")] = Path("report.html")
    figures: Annotated[
        Path | None, typer.Option(help="Also write every picture to this folder, as PNG and SVG.", metavar="DIR")
    ] = None
    force: options.Force = False

    def check(self) -> None:
        """Check that they can be written, and that no existing file is overwritten without --force."""
        outputs.ensure_writable(self.out, "--out", force=self.force)
        if self.figures is not None:
            outputs.ensure_folder_writable(self.figures, "--figures", force=self.force)


@dataclass(frozen=True)
class Study:
    """What the page shows besides the bundle itself."""

    panel: ClassVar[str] = "What the page shows"

    against: Annotated[
        str | None, typer.Option(help="Another bundle; the page shows what changed since it.", metavar="FILE")
    ] = None
    data_dir: options.DataDir = None
    samples: Annotated[
        int, typer.Option(help="Augmented images in each study of the data set.", min=28, max=100_000)
    ] = 1024
    device: options.Device = None


@grouped
def report(
    *,
    what: Annotated[
        list[str],
        typer.Argument(help=f"A bundle ({options.SOURCES}), the folder of its run, or both.", metavar="FILE|RUN..."),
    ],
    files: Files,
    study: Study,
    checks: options.BundleChecks,
    output: options.Output,
) -> None:
    """Write a page of HTML that shows what a policy learned.

    The page opens in any browser and loads nothing.

    Example: mapolicy report artifacts/digits.safetensors runs/search-digits-wrn10_1-seed0 --out digits.html
    """
    started = time.monotonic()
    bundle, run = _bundle_and_run(what)
    about_bundle = {"--against": study.against, "--expect-digest": checks.expect_digest, "--data-dir": study.data_dir}
    if bundle is None and (idle := [flag for flag, value in about_bundle.items() if value is not None]):
        raise UsageError(idle[0], "there is no bundle that it could be about", "name the run's bundle too")
    files.check()
    opened = None if bundle is None else checks.open(bundle)
    other = None if study.against is None else options.BundleChecks(limits=checks.limits).open(study.against)
    for each in (opened, other):
        if other is not None and each is not None and not each.policy.has_network:
            raise InputError(each.fetched.source, "is a dataset-level policy", "--against compares searched ones")

    from ..report.page import page
    from ..report.picture_files import picture_files

    gathered = _gathered(opened, run, other, study)
    content = page(gathered)
    pictures = {} if files.figures is None else {files.figures / n: p for n, p in picture_files(gathered).items()}
    for path, picture in {files.out: content, **pictures}.items():
        write_atomically(path, picture)
    document = {
        "report": str(files.out),
        "digest": gathered.digest or None,
        "bytes": len(content),
        "samples": 0 if gathered.samples is None else len(gathered.samples.weights),
        "without_data": gathered.no_data or None,
        "on_test_images": (gathered.run and gathered.run.on_test_images) or None,
        "figures": [str(path) for path in pictures],
        "seconds": time.monotonic() - started,
    }
    output.show(document, _lines(document, files))


def _bundle_and_run(what: list[str]) -> tuple[str | None, Path | None]:
    """The bundle and the run folder among the arguments.

    Raises:
        InputError: a folder that is no run's.
        UsageError: two of a kind.
    """
    runs = [name for name in what if (Path(name) / CONFIG_FILE).is_file()]
    named = [name for name in what if name not in runs]
    for name in named:
        if Path(name).is_dir():
            why = f"is no run folder: it has no {CONFIG_FILE}"
            raise InputError(name, why, "name a run folder, or a bundle's file")
    if len(runs) > 1 or len(named) > 1:
        why = f"{len(named)} bundles and {len(runs)} run folders were named"
        raise UsageError("FILE|RUN", why, "name one bundle, one run folder, or one of each; --against names another")
    return (named[0] if named else None), (Path(runs[0]) if runs else None)


def _gathered(opened: Opened | None, run: Path | None, other: Opened | None, study: Study) -> "Report":
    from ..report.gather import gather
    from ..report.metrics import read_run
    from ..runtime.device import resolve_device

    where = resolve_device(study.device or "auto")
    curves = None if run is None else read_run(run)
    searched = bundles.build_searched(opened) if opened and opened.policy.has_network else None
    # Equal weights, and weights by the training loss, have nothing to say of images.
    needs_data = searched is not None and searched.manifest.weighs_images
    if searched is not None and not needs_data and study.data_dir is not None:
        display.note(f"--data-dir is not used: {what_it_sees(searched.manifest)}")
    splits, no_data = _data(searched, study.data_dir, where) if searched is not None and needs_data else (None, "")
    before = None if other is None else bundles.build_searched(other)
    return gather(opened, searched, curves, splits, no_data, before, study.samples, where)


def _lines(document: Mapping[str, Any], files: Files) -> dict[str, str]:
    no_samples = f"none: {document['without_data']}" if document["without_data"] else ""
    lines = {
        "report": document["report"],
        "digest": document["digest"],
        "size": f"{document['bytes']:,} bytes",
        "samples": f"{document['samples']} images" if document["samples"] else no_samples,
        "test images": document["on_test_images"],
        "figures": f"{len(document['figures'])} files in {files.figures}" if document["figures"] else "",
        "time": display.duration(document["seconds"]),
    }
    return {name: value for name, value in lines.items() if value}


def _data(bundle: "PolicyBundle", data_dir: str | None, device: "torch.device") -> "tuple[DataSplits | None, str]":
    """The bundle's data set, or why the page does without it; a data folder that the user named must have it."""
    from ..report.samples import open_splits

    try:
        return open_splits(bundle, data_config(bundle.manifest, data_dir), device), ""
    except (InputError, UsageError) as problem:
        if data_dir is not None:
            raise
        # Without the folder's name: the page is for others.
        return None, f"{bundle.manifest.dataset.name}: {problem.why}; --data-dir says where it is."


def data_config(manifest: Manifest, data_dir: str | None) -> TrainConfig:
    """How the bundle's data set is read."""
    settings, flags = manifest.data_settings(), {"data_dir": data_dir}
    config, _ = resolve(TrainConfig, "resnet18", None, bundle_settings=settings, flags=flags)
    return config
