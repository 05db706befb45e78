"""`mapolicy explain`: which transformations of an image get a large weight."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ..bundle.findings import what_it_sees
from ..errors import UsageError
from ..runtime.files import check_readable, write_atomically
from . import bundles, display, options, outputs
from .grouped import grouped

if TYPE_CHECKING:
    from ..policy.policy_bundle import PolicyBundle
    from ..report.explain import Explanation
    from ..transforms.transformation import Transformation

FORMS = (".png", ".svg")
SAMPLES = 12
MOST_TILES = 1000  # in one picture
BAR, LEAST_BAR = 24, 6  # characters of the heaviest weight's bar; a shorter bar shows nothing


@dataclass(frozen=True)
class Chosen:
    """The transformations whose weights are shown."""

    panel: ClassVar[str] = "Transformations"

    transformations: Annotated[
        str | None,
        typer.Option(help='Operations with levels, for instance "Rotate:5,Color:-3; Equalize".', metavar="TEXT"),
    ] = None
    samples: Annotated[
        int | None, typer.Option(help=f"Number of transformations to sample from p_jk ({SAMPLES}).", min=1, max=1000)
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", min=0)] = 0

    def read(self, policy: "PolicyBundle") -> "Transformation":
        """The named transformations, or samples from p_jk; imports torch."""
        from ..runtime.random import generator
        from ..transforms.parse import parse_transformations

        if self.transformations is not None:
            return parse_transformations(self.transformations, policy.operation_space)
        return policy.sampler().sample(self.samples or SAMPLES, generator(self.seed, "explain", "transformation", 0))


@grouped
def explain(
    *,
    bundle: options.BundleArgument,
    images: Annotated[list[str], typer.Argument(help="Image files, of any size.", metavar="IMAGE...")],
    chosen: Chosen,
    out: Annotated[Path | None, typer.Option(help="Also draw a picture: PNG or SVG.", metavar="FILE")] = None,
    checks: options.BundleChecks,
    device: options.Device = None,
    force: options.Force = False,
    output: options.Output,
) -> None:
    """Show the weights that a policy gives to transformed images.

    A weight of 1 is the mean over the transformations. For a policy that weighs all samples equally, how often each
    transformation is drawn: 1 is as often as at random.

    Example: mapolicy explain artifacts/c100.safetensors cat.jpg --out cat.png
    """
    if chosen.transformations is not None and chosen.samples is not None:
        raise UsageError("--samples", "--transformations says which they are", "leave one of the two out")
    if out is not None and out.suffix.lower() not in FORMS:
        raise UsageError("--out", f"{out.name!r} does not end in {' or '.join(FORMS)}")
    if out is not None:
        outputs.ensure_writable(out, "--out", force=force)
    for path in images:
        check_readable(Path(path))
    policy = bundles.build_searched(checks.open(bundle))

    from ..report.explain import explain as explain_image
    from ..report.explain import read_image
    from ..report.sample_weights import SampleWeights
    from ..runtime.device import resolve_device

    where, transformation = resolve_device(device or "auto"), chosen.read(policy)
    if out is not None and len(images) * (len(transformation) + 1) > MOST_TILES:
        raise UsageError("--out", f"a picture holds {MOST_TILES} transformed images", "name fewer images")
    pictures = [read_image(path, policy.manifest) for path in images]
    weights = SampleWeights(policy, where)
    found = [
        explain_image(weights, picture, transformation, path) for picture, path in zip(pictures, images, strict=True)
    ]
    if out is not None:
        write_atomically(out, _picture(found, out.suffix.lower()[1:]))
    if output.as_json:
        documents = [explanation.document() for explanation in found]
        display.print_json({"digest": policy.digest, "out": out and str(out), "images": documents})
        return
    if not policy.manifest.weighs_images:
        print(f"{what_it_sees(policy.manifest)}\n")
    for explanation in found:
        _print(explanation)
    if out is not None:
        print(f"\npicture  {out}")


def _print(explanation: "Explanation") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..transforms.parse import spelled

    console = Console()
    table = Table(title=Text(explanation.name), title_justify="left", box=None, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column(explanation.measure, justify="right")
    table.add_column("transformation")
    texts, heaviest = spelled(explanation.transformation), max(float(explanation.weights.max()), 1e-9)
    # The width that the other columns leave; two characters separate columns.
    longest = min(BAR, console.width - len(f"rank  {explanation.measure}  ") - max(map(len, texts)) - 2)
    if longest >= LEAST_BAR:
        table.add_column("", no_wrap=True)
    for position in explanation.order():
        weight = float(explanation.weights[position])
        style = "green" if weight > 1 else "magenta"
        bar = [Text("█" * max(1, round(longest * weight / heaviest)), style=style)] if longest >= LEAST_BAR else []
        table.add_row(str(explanation.ranks[position]), f"{weight:.3f}", texts[position], *bar)
    console.print(table)


def _picture(found: "list[Explanation]", form: str) -> bytes:
    from ..report import figures
    from ..transforms.parse import spelled

    rows = []
    for explanation in found:
        texts = [text.replace(", ", "\n") for text in spelled(explanation.transformation)]
        tiles = [(explanation.original.numpy(), "as it is\n\n")]
        tiles += [
            (explanation.images[at].numpy(), f"{texts[at]}\n{float(explanation.weights[at]):.3f}")
            for at in explanation.order()
        ]
        rows.append((explanation.name, tiles))
    return figures.rendered(figures.tile_figure(rows))[form]
