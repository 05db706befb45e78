"""`mapolicy preview`: one's own images under a policy, before anything is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ..bundle.source import redacted
from ..config import TrainConfig
from ..errors import UsageError
from ..registries import policy_names
from ..runtime.files import write_atomically
from . import bundles, completion, display, options, outputs
from .grouped import grouped
from .resolve import resolve

ANY_NETWORK = "resnet18"  # recipes are found by data set and network; none is built


@dataclass(frozen=True)
class Picture:
    """What the picture shows, and where it goes."""

    panel: ClassVar[str] = "Picture"

    out: Annotated[Path, typer.Option(help="The picture.", metavar="FILE.png")] = Path("preview.png")
    images: Annotated[int, typer.Option(help="Images, of different classes where there are.", min=1, max=100)] = 4
    draws: Annotated[int, typer.Option(help="Draws of the policy for each image.", min=1, max=100)] = 7
    seed: Annotated[int, typer.Option(help="Seed of images and draws.", min=0)] = 0
    force: options.Force = False


@dataclass(frozen=True)
class Data:
    """How the images are read."""

    panel: ClassVar[str] = "Settings (by default the recipe's)"

    image_size: Annotated[int | None, typer.Option(help="Side of the images, pixels.")] = None
    data_dir: options.DataDir = None
    nested_classes: options.NestedClasses = False
    skip_corrupt: options.SkipCorrupt = False
    settings: options.SetOption = None


@grouped
def preview(
    *,
    dataset: options.DatasetOfBundle = None,
    bundle: Annotated[str | None, typer.Option(help=f"The policy: {options.SOURCES}", metavar="FILE")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help=f"{options.either(policy_names())}.",
            show_default="learned with --bundle, else uniform",
            autocompletion=completion.policies,
        ),
    ] = None,
    picture: Picture,
    data: Data,
    checks: options.BundleChecks,
    output: options.Output,
) -> None:
    """Draw your images under a policy, before any training.

    A row has an image and draws of the policy, with the operations below each. Flips, crops and Cutout are left out.

    Example: mapolicy preview digits --policy trivialaugment --out digits.png
    """
    if picture.out.suffix.lower() != ".png":
        raise UsageError("--out", f"{picture.out.name!r} does not end in .png", "give it such a name")
    outputs.ensure_writable(picture.out, "--out", force=picture.force)
    opened = None if bundle is None else checks.open(bundle)
    flags = {
        "policy": policy or ("uniform" if opened is None else "learned"),
        "image_size": data.image_size,
        "data_dir": data.data_dir,
        "seed": picture.seed,
        "nested_classes": data.nested_classes or None,
        "skip_corrupt": data.skip_corrupt or None,
    }
    of_bundle = None if opened is None else opened.policy.data_settings()
    config, _ = resolve(
        TrainConfig, ANY_NETWORK, dataset, bundle_settings=of_bundle, flags=flags, settings=data.settings
    )
    file = None if opened is None else bundles.build(opened)

    from ..report.preview import draw_preview, png

    drawn = draw_preview(config, file, picture.images, picture.draws, on_note=display.note)
    write_atomically(picture.out, png(drawn))
    facts = {"picture": str(picture.out), "policy": config.policy}
    if bundle is not None and opened is not None:
        facts |= {"bundle": redacted(bundle), "digest": opened.policy.digest}
    document = {**facts, "width": drawn.width, "height": drawn.height}
    output.show(document, {**facts, "size": f"{drawn.width} x {drawn.height} pixels"})
