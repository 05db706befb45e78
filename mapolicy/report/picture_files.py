"""The pictures of a report as PNG and SVG files."""

from collections.abc import Mapping, Sequence

from ..bundle.dataset_level import PublishedManifest
from ..transforms.parse import spelled
from ..transforms.space import OPERATION_NAMES
from . import figures
from .gather import Report
from .magnitude_response import MagnitudeResponse
from .samples import Samples

# MetaAugment's Figures 2, 3 and 4 (Zhou et al., AAAI 2021).
FIGURE_2, FIGURE_3, FIGURE_4 = "probabilities", "losses", "samples"


def picture_files(report: Report) -> dict[str, bytes]:
    """Every picture of the report as PNG and SVG, by file name."""
    found: dict[str, Mapping[str, bytes]] = {}
    for table in (
        report.levels,
        report.probabilities,
        report.classes,
        None if report.changes is None else report.changes.table,
    ):
        if table is not None:
            found[table.key] = figures.rendered(figures.heat_figure(table))
    if report.run is not None and (draws := figures.curve_draws(report.run.curves)):
        found["learning"] = figures.files(list(draws.values()), 2)
    if report.response is not None:
        found["magnitudes"] = figures.files(response_draws(report.response), 4, figures.SMALL_PANEL)
    if report.dataset_level is not None:
        shares = operation_shares(report.dataset_level)
        draw = figures.share_draw(list(shares), list(shares.values()))
        found["operations"] = figures.files([draw], 1, (5, 4))
    if report.samples is not None:
        samples, names = report.samples, report.class_names
        extremes = {"largest weights": samples.heaviest(), "smallest weights": samples.lightest()}
        found[FIGURE_4] = figures.rendered(figures.tile_figure(_tile_rows(samples, names, extremes)))
        hard, easy = samples.against_the_loss()
        if hard and easy:
            rows = _tile_rows(samples, names, {"high loss, low weight": hard, "low loss, high weight": easy})
            found[FIGURE_3] = figures.rendered(figures.tile_figure(rows))
    return {f"{name}.{form}": content for name, forms in found.items() for form, content in forms.items()}


def response_draws(response: MagnitudeResponse) -> list[figures.Draw]:
    """A chart of weight against magnitude for each operation."""
    return figures.response_draws(
        response.names, response.levels, response.low, response.median, response.high, response.has_magnitude
    )


def operation_shares(policy: PublishedManifest) -> dict[str, float]:
    """How many times a dataset-level policy applies each operation to an image, on average."""
    return dict.fromkeys(OPERATION_NAMES, 0.0) | policy.uses()


def _tile_rows(
    samples: Samples, names: Sequence[str], rows: Mapping[str, Sequence[int]]
) -> list[tuple[str, list[tuple[figures.Pixels, str]]]]:
    texts = [text.replace(", ", "\n") for text in spelled(samples.transformation)]

    def caption(at: int) -> str:
        loss = "" if samples.losses is None else f", loss {float(samples.losses[at]):.2f}"
        label = names[int(samples.labels[at])][: figures.LONGEST_NAME]
        return f"{label}\n{texts[at]}\nweight {float(samples.weights[at]):.3f}{loss}"

    return [
        (title, [(samples.images[at].numpy(), caption(at)) for at in positions]) for title, positions in rows.items()
    ]
