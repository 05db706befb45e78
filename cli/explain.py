"""`mapolicy explain`: which transformations a policy likes for one's own images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..runtime.files import check_readable, write_atomically
from . import display, options

if TYPE_CHECKING:
    from ..report.explain import Explanation

FORMS = (".png", ".svg")
DRAWN = 12
MOST_TILES = 1000  # in one picture
BAR, LEAST_BAR = 24, 6  # characters of the heaviest weight's bar; a shorter one says nothing


def explain(
    bundle: options.BundleArgument,
    images: Annotated[list[str], typer.Argument(help="Image files, of any size.", metavar="IMAGE...")],
    transformations: Annotated[
        str | None,
        typer.Option(help='As in "Rotate:5,Color:-3; Equalize": operations with levels.', metavar="TEXT"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help=f"Draw so many from p_jk instead ({DRAWN}).", min=1, max=1000)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Also a picture: PNG or SVG.", metavar="FILE")] = None,
    device: options.Device = None,
    expect_digest: options.ExpectDigest = None,
    limits: options.BundleLimits = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show how much a policy would count an image under each of some transformations; 1 is their mean.

    Example: mapolicy explain artifacts/c100.safetensors cat.jpg --out cat.png
    """
    if transformations is not None and samples is not None:
        raise UsageError("--samples", "--transformations says which they are", "leave one of the two out")
    if out is not None and out.suffix.lower() not in FORMS:
        raise UsageError("--out", f"{out.name!r} does not end in {' or '.join(FORMS)}")
    if out is not None:
        options.claim(out, force, resume=False, flag="--out")
    for path in images:
        check_readable(Path(path))
    opened = options.opened(bundle, expect_digest, limits)
    policy = options.searched(opened)

    from ..policy.sampler import TransformationSampler
    from ..report.explain import explain as weigh
    from ..report.explain import read_image
    from ..report.sample_weights import SampleWeights
    from ..runtime.device import resolve_device
    from ..runtime.random import generator
    from ..transforms.parse import parse_transformations

    where = resolve_device(device or "auto")
    if transformations is None:
        sampler = TransformationSampler(probabilities=policy.probabilities)
        chosen = sampler.sample(samples or DRAWN, generator(seed, "explain", "transformation", 0))
    else:
        chosen = parse_transformations(transformations)
    if out is not None and len(images) * (len(chosen) + 1) > MOST_TILES:
        raise UsageError("--out", f"a picture holds {MOST_TILES} transformed images", "name fewer images")
    pictures = [read_image(path, policy.manifest.input) for path in images]
    sample_weights = SampleWeights(policy, where)
    found = [weigh(sample_weights, picture, chosen, path) for picture, path in zip(pictures, images, strict=True)]
    if out is not None:
        write_atomically(out, _picture(found, out.suffix.lower()[1:]))
    if as_json:
        documents = [explanation.document() for explanation in found]
        display.print_json({"digest": policy.digest, "out": out and str(out), "images": documents})
        return
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
    table.add_column("weight", justify="right")
    table.add_column("transformation")
    texts, heaviest = spelled(explanation.transformation), float(explanation.weights.max())
    # What the other columns leave, with two characters between columns.
    longest = min(BAR, console.width - len("rank  weight  ") - max(map(len, texts)) - 2)
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
