"""A report as one HTML page that needs no network.

The page's Content-Security-Policy allows its one script, by its hash, and inlined images. Nothing else can be loaded,
sent or run, even if foreign text contained HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..bundle.dataset_level import PublishedManifest, spelled_list
from ..transforms.parse import spelled
from . import figures
from .gather import Report
from .picture_files import operation_shares, response_draws
from .samples import Samples
from .templating import environment, inlined, png_address, script_hash

LISTED_SUB_POLICIES = 200


@dataclass(frozen=True)
class Tile:
    """A sample on the page.

    Attributes:
        before, after: data URLs of PNGs.
        label: name of the class.
        transformation: the transformation in words.
        weight: weight, relative to the mean.
        loss: cross entropy; None if it is not known.
    """

    before: str
    after: str
    label: str
    transformation: str
    weight: float
    loss: float | None


def page(report: Report) -> bytes:
    """The report as HTML."""
    script = inlined("report.js")
    samples, policy = report.samples, report.dataset_level
    content = {
        "report": report,
        "style": inlined("style.css"),
        "script": script,
        "script_hash": Markup(script_hash(script)),
        "facts": _facts(report),
        "note": report.described["note"] if report.described else policy.note if policy else "",
        "checks": _checks(report),
        "curves": _curves(report),
        "responses": _responses(report),
        "extremes": _extremes(samples, report.class_names),
        "surprises": _surprises(samples, report.class_names),
        "loss_chart": _loss_chart(samples),
        "use": None if policy is None else _use(policy),
        "sub_policies": [] if policy is None else _sub_policies(policy),
    }
    return environment().get_template("report.html").render(content).encode()


def _facts(report: Report) -> dict[str, str]:
    if report.dataset_level is not None:
        policy = report.dataset_level
        return {
            "bundle": _place(report.origin),
            "digest": policy.digest,
            "kind": "dataset-level policy: equal weights, no network, any data set",
            "source": policy.source,
            "lost in the import": "; ".join(policy.lost) or "nothing",
            "licence": policy.licence or "not stated",
        }
    if report.described is None:
        return {}
    known = report.described
    data, inputs, run, results = known["dataset"], known["input"], known["run"], known["results"]
    alpha = known["alpha"]
    facts = {
        "bundle": _place(report.origin),
        "digest": known["digest"],
        "data set": f"{data['name']}, {len(data['classes'])} classes, {data['counts']['train']} training and "
        f"{data['counts']['meta_validation']} meta-validation images",
        "fingerprint": data["fingerprint"],
        "images": f"{inputs['channels']} x {inputs['size']} x {inputs['size']}, base augmentation "
        f"{inputs['base_augmentation']}, Cutout {inputs['cutout']}",
        "searched with": f"{known['extractor']['arch']}, {run['epochs']} epochs, {run['iterations']} iterations",
        "accuracy of the proxy": f"{known['validation_top1']:.2f} % top-1 on the meta-validation images",
        "alpha": f"{alpha[0]:.4f}" if len(alpha) == 1 else f"{len(alpha)} values, {min(alpha):.4f} to {max(alpha):.4f}",
        "entropy of p_jk": f"{known['entropy']:.5f} of uniform"
        + _between(results, "entropy_by_chance", " ({:.5f} to {:.5f} by chance alone)"),
        "furthest from uniform": f"{known['furthest']:.2%} (largest relative difference of a p_jk)",
    }
    for name, key in (("spread of the weights", "weight_spread"), ("signal to noise", "signal_to_noise")):
        if key in results and not (key == "weight_spread" and known["equal_weights"]):
            facts[name] = f"{results[key]:.4f}" + _between(results, key, " ({:.4f} to {:.4f})")
    return facts | {
        "size": f"{known['bytes']:,} bytes, {known['parameters']['extractor']:,} parameters in the extractor, "
        f"{known['parameters']['policy']:,} in the policy network",
        "versions": ", ".join(f"{name} {version}" for name, version in known["versions"].items()),
        "licence": known["licence"] or "not stated",
    }


def _checks(report: Report) -> list[dict[str, Any]]:
    """The rows of the policy's own check."""
    check = (report.described or {}).get("verification")
    if check is None:
        return []
    return [
        {
            "name": row["policy"] if row["strength"] is None else f"{row['policy']}, strength {row['strength']:g}",
            "accuracy": 100 * row["correct"] / check["images"],
            "kept": row["kept"],
            **{short: row[key] for short, key in (("gain", "gain"), ("low", "gain_low"), ("high", "gain_high"))},
        }
        for row in check["rows"]
    ]


def _place(origin: str) -> str:
    """Where a bundle came from, without the folders of the machine that writes the page."""
    return origin if "://" in origin else Path(origin).name


def _between(results: Mapping[str, float], key: str, form: str) -> str:
    ends = [results[f"{key}_{end}"] for end in ("low", "high") if f"{key}_{end}" in results]
    return form.format(*ends) if len(ends) == 2 else ""


def _charts(name: str, draws: Mapping[str, figures.Draw], size: tuple[float, float]) -> dict[str, Markup]:
    """Charts as inline SVG, by title. `name` starts the ids inside them."""
    charts = figures.panels(name, list(draws.values()), size)
    return {title: Markup(svg) for title, svg in zip(draws, charts, strict=True)}


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


def _responses(report: Report) -> list[Markup]:
    if report.response is None:
        return []
    draws = dict(zip(report.response.names, response_draws(report.response), strict=True))
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
            before=png_address(samples.originals[at]),
            after=png_address(samples.images[at]),
            label=names[int(samples.labels[at])],
            transformation=texts[at],
            weight=float(samples.weights[at]),
            loss=None if samples.losses is None else float(samples.losses[at]),
        )
        for at in positions
    ]


def _extremes(samples: Samples | None, names: Sequence[str]) -> list[tuple[str, list[Tile]]]:
    if samples is None:
        return []
    rows = {"Largest weights": samples.heaviest(), "Smallest weights": samples.lightest()}
    return [(title, _tiles(samples, names, positions)) for title, positions in rows.items()]


def _surprises(samples: Samples | None, names: Sequence[str]) -> list[tuple[str, list[Tile]]]:
    if samples is None:
        return []
    hard, easy = samples.against_the_loss()
    rows = {"High loss, low weight": hard, "Low loss, high weight": easy}
    return [(title, _tiles(samples, names, positions)) for title, positions in rows.items() if positions]


def _use(policy: PublishedManifest) -> dict[str, Any]:
    shares = operation_shares(policy)
    chart = _charts("operations", {"": figures.share_draw(list(shares), list(shares.values()))}, (5, 4))[""]
    return {"svg": chart, "shares": list(shares.items())}


def _sub_policies(policy: PublishedManifest) -> list[str]:
    _, listed = spelled_list(policy)
    more = len(listed) - LISTED_SUB_POLICIES
    return listed[:LISTED_SUB_POLICIES] + ([f"and {more} more"] if more > 0 else [])
