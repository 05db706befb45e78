"""A report as one page of HTML that needs no network, and its pictures as files.

What others wrote is escaped by the template engine and shown without characters that do not print. The page's policy
(Content-Security-Policy) lets nothing be loaded, sent or run but the one script that it names by its hash.
"""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ..bundle.dataset_level import PublishedManifest, spelled_step
from ..runtime.sanitize import printable
from ..transforms.parse import spelled
from ..transforms.space import HAS_MAGNITUDE, OPERATION_NAMES
from . import figures
from .gather import Report
from .samples import Samples

TEMPLATES = Path(__file__).with_name("templates")
LARGEST_TILE = 96  # pixels of a picture's side on the page
LISTED_SUB_POLICIES = 200
FIGURE_2, FIGURE_3, FIGURE_4 = "probabilities", "losses", "samples"


@dataclass(frozen=True)
class Tile:
    """An augmented image on the page.

    Attributes:
        before, after: data addresses of PNGs.
        label: its class.
        transformation: as text.
        weight: relative to the mean.
        loss: or None where that is not known.
    """

    before: str
    after: str
    label: str
    transformation: str
    weight: float
    loss: float | None


def environment() -> Environment:
    """The template engine: everything escaped, nothing missing passed over."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.finalize = lambda value: value if isinstance(value, Markup | int | float) else _plain(str(value))
    made.filters["number"] = lambda value: repr(float(value))
    return made


def inlined(name: str) -> Markup:
    """A style sheet or a script of ours, for a page's own element."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def script_hash(script: str) -> str:
    """What a Content-Security-Policy names a script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def page(report: Report) -> bytes:
    """The report's HTML."""
    script = inlined("report.js")
    content = {
        "report": report,
        "style": inlined("style.css"),
        "script": script,
        "script_hash": Markup(script_hash(script)),
        "facts": _facts(report),
        "note": report.described["note"] if report.described else report.published.note if report.published else "",
        "curves": _curves(report),
        "responses": _responses(report),
        "kinds": [] if report.samples is None else _kinds(report.samples, report.class_names),
        "surprises": [] if report.samples is None else _surprises(report.samples, report.class_names),
        "loss_chart": _loss_chart(report.samples),
        "use": None if report.published is None else _use(report.published),
        "sub_policies": [] if report.published is None else _sub_policies(report.published),
    }
    return environment().get_template("report.html").render(content).encode()


def picture_files(report: Report) -> dict[str, bytes]:
    """Every picture of the report as PNG and SVG, by file name."""
    found: dict[str, Mapping[str, bytes]] = {}
    for table in (report.probabilities, report.classes, None if report.changes is None else report.changes.table):
        if table is not None:
            found[table.key] = figures.rendered(figures.heat_figure(table))
    if report.run is not None and (draws := figures.curve_draws(report.run.curves)):
        found["learning"] = figures.files(list(draws.values()), 2)
    if report.response is not None:
        found["magnitudes"] = figures.files(_response_draws(report), 4, figures.SMALL_PANEL)
    if report.published is not None:
        names, shares = _shares(report.published)
        found["operations"] = figures.files([figures.share_draw(names, shares)], 1, (5, 4))
    if report.samples is not None:
        samples, names = report.samples, report.class_names
        kinds = {"heaviest": samples.heaviest(), "lightest": samples.lightest()}
        found[FIGURE_4] = figures.rendered(figures.tile_figure(_tile_rows(samples, names, kinds)))
        hard, easy = samples.against_the_loss()
        if hard and easy:
            rows = _tile_rows(samples, names, {"high loss, low weight": hard, "low loss, high weight": easy})
            found[FIGURE_3] = figures.rendered(figures.tile_figure(rows))
    return {f"{name}.{form}": content for name, forms in found.items() for form, content in forms.items()}


def png_address(image: Tensor, largest: int = LARGEST_TILE) -> str:
    """An image uint8 [C, H, W] as an address that holds it, no side longer than so many pixels."""
    pixels = image.numpy()
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2))
    picture.thumbnail((largest, largest))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _plain(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def _facts(report: Report) -> dict[str, str]:
    if report.published is not None:
        policy = report.published
        return {
            "bundle": _place(report.origin),
            "digest": policy.digest,
            "kind": "dataset-level policy: equal weights, no network, any data set",
            "source": policy.source,
            "lost on the way": "; ".join(policy.lost) or "nothing",
            "licence": policy.licence or "not stated",
        }
    if report.described is None:
        return {}
    known = report.described
    data, sees, run, results = known["dataset"], known["input"], known["run"], known["results"]
    alpha = known["alpha"]
    facts = {
        "bundle": _place(report.origin),
        "digest": known["digest"],
        "data set": f"{data['name']}, {len(data['classes'])} classes, {data['counts']['train']} training and "
        f"{data['counts']['meta_validation']} meta-validation images",
        "fingerprint": data["fingerprint"],
        "images": f"{sees['channels']} x {sees['size']} x {sees['size']}, base augmentation "
        f"{sees['base_augmentation']}, Cutout {sees['cutout']}",
        "searched with": f"{known['extractor']['arch']}, {run['epochs']} epochs, {run['iterations']} iterations",
        "its accuracy": f"{known['validation_top1']:.2f} % top-1 on the images that the policy was learned on",
        "alpha": f"{alpha[0]:.4f}"
        if len(alpha) == 1
        else f"{len(alpha)} of them, {min(alpha):.4f} to {max(alpha):.4f}",
        "entropy of p_jk": f"{known['entropy']:.5f} of uniform"
        + _between(results, "entropy_by_chance", " (by chance alone {:.5f} to {:.5f})"),
        "furthest from uniform": f"{known['furthest']:.2%} (largest relative difference of a p_jk)",
    }
    for name, key in (("spread of the weights", "weight_spread"), ("signal to noise", "signal_to_noise")):
        if key in results:
            facts[name] = f"{results[key]:.4f}" + _between(results, key, " ({:.4f} to {:.4f})")
    return facts | {
        "size": f"{known['bytes']:,} bytes, {known['parameters']['extractor']:,} parameters in the extractor, "
        f"{known['parameters']['policy']:,} in the policy network",
        "versions": ", ".join(f"{name} {version}" for name, version in known["versions"].items()),
        "licence": known["licence"] or "not stated",
    }


def _place(origin: str) -> str:
    """Where a bundle came from, for others: not which folders its reader has."""
    return origin if "://" in origin else Path(origin).name


def _between(results: Mapping[str, float], key: str, form: str) -> str:
    ends = [results[f"{key}_{end}"] for end in ("low", "high") if f"{key}_{end}" in results]
    return form.format(*ends) if len(ends) == 2 else ""


def _charts(name: str, draws: Mapping[str, figures.Draw], size: tuple[float, float]) -> dict[str, Markup]:
    drawn = figures.panels(name, list(draws.values()), size)
    return {title: Markup(svg) for title, svg in zip(draws, drawn, strict=True)}


def _curves(report: Report) -> list[dict[str, Any]]:
    if report.run is None:
        return []
    curves = report.run.curves
    charts = _charts("learning", figures.curve_draws(curves), figures.PANEL)
    shown_curves = {
        title: {figures.LABELS.get(name, unit): curves[name] for name in names if name in curves}
        for title, (names, unit) in figures.CURVES.items()
    }
    return [{"title": title, "svg": svg, "curves": shown_curves[title]} for title, svg in charts.items()]


def _response_draws(report: Report) -> list[figures.Draw]:
    found = report.response
    assert found is not None
    return figures.response_draws(found.names, found.levels, found.low, found.median, found.high, HAS_MAGNITUDE)


def _responses(report: Report) -> list[Markup]:
    if report.response is None:
        return []
    draws = dict(zip(report.response.names, _response_draws(report), strict=True))
    return list(_charts("magnitudes", draws, figures.SMALL_PANEL).values())


def _loss_chart(samples: Samples | None) -> Markup:
    if samples is None or samples.losses is None:
        return Markup("")
    draw = figures.loss_draw(samples.losses.numpy(), samples.weights.numpy())
    return _charts("losses", {"": draw}, (5, 3))[""]


def _tiles(samples: Samples, names: Sequence[str], positions: Sequence[int]) -> list[Tile]:
    texts = spelled(samples.transformation)
    return [
        Tile(
            png_address(samples.originals[at]),
            png_address(samples.images[at]),
            names[int(samples.labels[at])],
            texts[at],
            float(samples.weights[at]),
            None if samples.losses is None else float(samples.losses[at]),
        )
        for at in positions
    ]


def _tile_rows(
    samples: Samples, names: Sequence[str], kinds: Mapping[str, Sequence[int]]
) -> list[tuple[str, list[tuple[figures.Pixels, str]]]]:
    texts = [text.replace(", ", "\n") for text in spelled(samples.transformation)]

    def caption(at: int) -> str:
        loss = "" if samples.losses is None else f", loss {float(samples.losses[at]):.2f}"
        label = names[int(samples.labels[at])][: figures.LONGEST_NAME]
        return f"{label}\n{texts[at]}\nweight {float(samples.weights[at]):.3f}{loss}"

    return [
        (title, [(samples.images[at].numpy(), caption(at)) for at in positions]) for title, positions in kinds.items()
    ]


def _kinds(samples: Samples, names: Sequence[str]) -> list[tuple[str, list[Tile]]]:
    return [
        ("Highest weights", _tiles(samples, names, samples.heaviest())),
        ("Lowest weights", _tiles(samples, names, samples.lightest())),
    ]


def _surprises(samples: Samples, names: Sequence[str]) -> list[tuple[str, list[Tile]]]:
    hard, easy = samples.against_the_loss()
    found = [("High loss, low weight", hard), ("Low loss, high weight", easy)]
    return [(title, _tiles(samples, names, positions)) for title, positions in found if positions]


def _shares(policy: PublishedManifest) -> tuple[tuple[str, ...], list[float]]:
    """How many times an image meets each operation on average, at most once for each step."""
    met = dict.fromkeys(OPERATION_NAMES, 0.0)
    for steps in policy.sub_policies:
        for step in steps:
            met[step.operation] += step.probability / len(policy.sub_policies)
    return OPERATION_NAMES, list(met.values())


def _use(policy: PublishedManifest) -> dict[str, Any]:
    names, shares = _shares(policy)
    chart = _charts("operations", {"": figures.share_draw(names, shares)}, (5, 4))[""]
    return {"svg": chart, "shares": list(zip(names, shares, strict=True))}


def _sub_policies(policy: PublishedManifest) -> list[str]:
    listed = [" then ".join(map(spelled_step, steps)) or "nothing" for steps in policy.sub_policies]
    more = len(listed) - LISTED_SUB_POLICIES
    return listed[:LISTED_SUB_POLICIES] + ([f"and {more} more"] if more > 0 else [])
