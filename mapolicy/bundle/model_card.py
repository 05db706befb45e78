"""A bundle's model card, the README.md of its repository on the hub, and the card's picture of p_jk.

A bundle is untrusted. Its texts go into code spans and code blocks, where Markdown and HTML have no effect.
`huggingface_hub.ModelCardData` writes the front matter. Its `ModelCard` renders a Jinja template instead of sections;
that would be longer here, and parse the front matter once more.
"""

import io
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from ..runtime.files import CONFIG_FILE, RESULT_FILE, read_regular_file
from ..runtime.sanitize import printable
from .dataset_level import DatasetPolicy, PublishedManifest, spelled_stage
from .describe import log_levels, sample_effects
from .findings import Findings, Table, relative_frequencies, verification_document
from .format import PROBABILITIES
from .load import SearchedFile
from .manifest import Manifest
from .safetensors_reader import RawTensor
from .source import CARD_FILE, LEVELS_FILE, PICTURE_FILE

LARGEST_RECORD = 2**24  # bytes of a run's result or configuration
LISTED, LISTED_SUB_POLICIES = 5, 500  # pairs at either end of the ranking; sub-policies

# Licences usual for data and weights, by their names in https://huggingface.co/docs/hub/repositories-licenses.
LICENCES = frozenset(
    {"apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0"}
    | {"cc-by-nd-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "mit", "mpl-2.0", "openrail", "unlicense"}
)

CELL, FONT_SIZE = 54, 13  # pixels
_HIGH, _LOW = np.array([178, 24, 43]), np.array([33, 102, 172])  # above and below uniform


@dataclass(frozen=True)
class RunResult:
    """A finished training run with this bundle, or with a baseline on the same splits."""

    arch: str
    policy: str
    epochs: int
    seed: int
    test_top1: float


def read_run(folder: Path, digest: str) -> RunResult:
    """Read the result of a run folder of `train_network`.

    Args:
        folder: the run folder.
        digest: of the bundle that the run must have used.

    Raises:
        InputError: the folder has no finished run, or the run used another bundle.
    """
    try:
        result = json.loads(read_regular_file(folder / RESULT_FILE, LARGEST_RECORD))
        config = tomllib.loads(read_regular_file(folder / CONFIG_FILE, LARGEST_RECORD).decode())
        found = result["digest"]
        policy = result["mode"] if result["policy"] == "learned" else result["policy"]
        row = RunResult(
            str(result["arch"]), str(policy), int(config["epochs"]), int(config["seed"]), float(result["test_top1"])
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            str(folder), "is not a finished training run", "name the run folder of mapolicy train"
        ) from None
    if found != digest:
        why = f"trained with the bundle {str(found)[:12]}, not with {digest[:12]}"
        raise InputError(str(folder), why, "give --bundle to the baseline's run too, so that it has the same splits")
    return row


def card_pages(
    policy: SearchedFile | DatasetPolicy, repository: str, licence: str, runs: Sequence[RunResult]
) -> dict[str, bytes]:
    """The files beside a bundle in a repository, by name; arguments as of `model_card`."""
    if isinstance(policy, DatasetPolicy):
        return {CARD_FILE: dataset_policy_card(policy.manifest, repository, licence, runs).encode()}
    pages = {
        CARD_FILE: model_card(policy.manifest, policy.tensors, repository, licence, runs).encode(),
        PICTURE_FILE: heat_map(policy.tensors, policy.manifest.operations.names),
    }
    if policy.manifest.levels is not None:
        pages[LEVELS_FILE] = level_map(policy.manifest, policy.tensors)
    return pages


def model_card(
    manifest: Manifest,
    tensors: Mapping[str, RawTensor],
    repository: str,
    licence: str = "",
    runs: Sequence[RunResult] = (),
) -> str:
    """README.md of a searched bundle's repository: YAML front matter and Markdown.

    Args:
        manifest, tensors: as `format.read_bundle` returns them.
        repository: NAMESPACE/NAME of the repository.
        licence: of the repository, unless the bundle states its own.
        runs: results to list in the card.
    """
    licence = manifest.licence or licence
    findings = Findings.of(manifest, log_levels(tensors), sample_effects(tensors))
    settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in sorted(manifest.search.settings.items()))
    return _page(
        {"digest": manifest.digest, "format": manifest.format, "proxy": manifest.extractor.arch},
        licence,
        f"# Augmentation policy for {_code(manifest.dataset.name)}",
        _what_it_is(manifest),
        _facts(manifest, licence),
        "## How to use it",
        _use(manifest, repository),
        "## What was gained",
        *_check(manifest, findings),
        *([_gain(runs)] if runs or not findings.verdict else []),
        "## What it learned",
        *_learned(findings),
        f"![Probability of each pair of operations, in per cent]({PICTURE_FILE})",
        _likeliest(manifest, tensors),
        *_note(manifest.note),
        "## Settings of the search",
        _block(settings, "toml"),
    )


def _what_it_is(manifest: Manifest) -> str:
    kind = "An augmentation policy" if manifest.equal_weights else "A sample-aware augmentation policy"
    return (
        f"{kind}, searched once with MetaAugment (Zhou et al., AAAI 2021) and reused to train other networks on the "
        "same data set. The file holds the policy network, the network that extracts features of the images for it, "
        "and the probabilities of the transformations. It is plain safetensors: loading it runs no code."
    )


def _check(manifest: Manifest, findings: Findings) -> list[str]:
    """How the policy did in its own check; nothing without one."""
    document = verification_document(manifest)
    if document is None:
        return []
    rows = ["| trained with | accuracy % | the kept policy gains, points (95 % interval) |", "|---|---|---|"]
    for row in document["rows"]:
        name = row["policy"] if row["strength"] is None else f"{row['policy']}, strength {row['strength']:g}"
        gain = "{gain:+.1f} ({gain_low:+.1f} to {gain_high:+.1f})".format(**row)
        accuracy = 100 * row["correct"] / document["images"]
        rows.append(f"| {_code(name)} | {accuracy:.1f} | {'kept' if row['kept'] else gain} |")
    return [f"**{_sentence(findings.verdict)}**", findings.checked, "\n".join(rows)]


def _learned(findings: Findings) -> list[str]:
    """What was learned of levels, with the picture, and what equal weights mean."""
    weights = [_sentence(findings.weights)] if findings.weights else []
    if not findings.learned:
        return weights
    listed = "\n".join(f"- {_sentence(line)}" for line in findings.learned)
    return [
        listed,
        f"![How often each operation is drawn at each level, times a uniform draw]({LEVELS_FILE})",
        *weights,
    ]


def _sentence(text: str) -> str:
    """A sentence of ours; an underscore in a name in it is no emphasis."""
    return f"{text[:1].upper()}{text[1:]}.".replace("_", "\\_")


def dataset_policy_card(
    manifest: PublishedManifest, repository: str, licence: str = "", runs: Sequence[RunResult] = ()
) -> str:
    """README.md of a dataset-level policy's repository, which has no picture.

    Args:
        manifest: of the policy.
        repository, licence, runs: as in `model_card`.
    """
    licence = manifest.licence or licence
    reference = f"hf://{repository}"
    shell = f"mapolicy train DATASET --bundle {reference} --expect-digest {manifest.digest} --arch resnet18"
    listed = [
        "; ".join(f"{step.operation} {step.probability:g} {'+-' * step.mirrored}{step.value:g}" for step in steps)
        for steps in manifest.sub_policies
    ] or [spelled_stage(stage) for stage in manifest.stages]
    steps = listed[:LISTED_SUB_POLICIES]
    more = len(listed) - len(steps)
    what = "One sub-policy is drawn for each image, and each of its steps is applied with its probability."
    if manifest.stages:
        what = "The run's stage says which steps are applied: a few for each image, in random order."
    return _page(
        {"digest": manifest.digest, "format": manifest.format, "kind": manifest.kind},
        licence,
        "# Dataset-level augmentation policy",
        f"A published policy as a mapolicy bundle. {what} All samples have the same weight. It has no network and "
        "suits every data set.",
        f"- **digest**: {_code(manifest.digest)}\n- **source**: {_code(manifest.source)}\n"
        f"- **lost in the conversion**: {', '.join(map(_code, manifest.lost)) or 'nothing'}\n"
        f"- **licence**: {_code(licence) if licence else 'not stated: ask before you use it'}",
        "## How to use it",
        _block(shell, "bash"),
        "## What was gained",
        _gain(runs),
        f"## {'Stages' if manifest.stages else 'Sub-policies'}: operation, probability, value",
        _block("\n".join([*steps, *([f"and {more} more"] if more else [])])),
        *_note(manifest.note),
    )


def _page(about: Mapping[str, Any], licence: str, *sections: str) -> str:
    return _front_matter(licence, about) + "\n\n".join(sections) + "\n"


def _note(note: str) -> list[str]:
    return ["## Note", _block(note)] if note else []


def _front_matter(licence: str, about: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    known = licence.lower() in LICENCES
    data = ModelCardData(
        license=licence.lower() if known else "other" if licence else None,
        license_name=None if known or not licence else re.sub(r"[^a-z0-9]+", "-", licence.lower()).strip("-") or "own",
        library_name="mapolicy",
        tags=["mapolicy", "metaaugment", "data-augmentation", "image-classification"],
        mapolicy=dict(about),
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _facts(manifest: Manifest, licence: str) -> str:
    data, sees = manifest.dataset, manifest.input
    facts = {
        "digest": _code(manifest.digest),
        "data set": f"{_code(data.name)}, {len(data.classes)} classes, {data.counts.train} training and "
        f"{data.counts.meta_validation} meta-validation images, fingerprint {_code(data.fingerprint)}",
        "images": f"{sees.channels} x {sees.size} x {sees.size}, base augmentation {_code(sees.base_augmentation)}, "
        f"Cutout {sees.cutout}",
        "searched with": f"{_code(manifest.extractor.arch)}, {manifest.run.epochs} epochs, "
        f"{manifest.results['validation_top1']:.2f} % top-1 on the images that the policy was learned on",
        "operations": f"{len(manifest.operations.names)} of {_code(manifest.operations.space)}",
        "extractor": f"{_code(manifest.extractor.arch)} stored in {_code(manifest.extractor.dtype)}",
        "versions": ", ".join(f"{_code(name)} {_code(version)}" for name, version in manifest.versions.items()),
        "licence": _code(licence) if licence else "not stated: ask before you use it",
    }
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def _use(manifest: Manifest, repository: str) -> str:
    reference, name = f"hf://{repository}", manifest.dataset.name
    # A bundle records a folder's name without its path. The user must name a data set that timm may download.
    typed = "folder:PATH " if name.startswith("folder:") else f"{name} " if "/" in name else ""
    shell = f"mapolicy train {typed}--bundle {reference} --expect-digest {manifest.digest} --arch resnet18"
    python = (
        "from mapolicy import PolicyAugment, PolicyBundle\n\n"
        f'bundle = PolicyBundle.load("{reference}", expect_digest="{manifest.digest}")\n'
        "policy = PolicyAugment(bundle)  # call it where a training loop calls MixUp"
    )
    why = (
        "The digest identifies the policy: any other file at this address is rejected. `@COMMIT` after the name pins "
        "the repository's commit."
    )
    return f"{_block(shell, 'bash')}\n\n{_block(python, 'python')}\n\n{why}"


def _gain(runs: Sequence[RunResult]) -> str:
    if not runs:
        return (
            "**Not measured.** The accuracy of the search's network on the images that the policy was learned on says "
            "nothing about the gain of other networks. Compare with `--policy uniform` (the same operations, equal "
            "weights) and `--policy trivialaugment` for the same training time."
        )
    rows = [
        f"| {_code(run.arch)} | {_code(run.policy)} | {run.epochs} | {run.seed} | {run.test_top1:.2f} |" for run in runs
    ]
    head = "| network | policy | epochs | seed | test top-1 % |\n|---|---|---|---|---|"
    single = "" if len({run.seed for run in runs}) > 1 else "\n\nOne seed: differences may be due to chance."
    return "\n".join([head, *rows]) + single


def _likeliest(manifest: Manifest, tensors: Mapping[str, RawTensor]) -> str:
    values, names = _probabilities(tensors), manifest.operations.names
    order = np.argsort(-values, axis=None, kind="stable")

    def line(title: str, positions: Any) -> str:
        pairs = (divmod(int(position), len(names)) for position in positions)
        return f"- **{title}**: " + "; ".join(f"{names[j]}, {names[k]} ({values[j, k]:.3%})" for j, k in pairs)

    uniform = f"If all {values.size} pairs were equally likely, each would have {1 / values.size:.3%}."
    return "\n".join([uniform, "", line("likeliest", order[:LISTED]), line("unlikeliest", order[::-1][:LISTED])])


def heat_map(tensors: Mapping[str, RawTensor], names: Sequence[str]) -> bytes:
    """The probabilities p_jk as a PNG heat map: rows are first operations, columns second ones, cells per cent.

    Args:
        tensors: of the bundle.
        names: of the operations, in the order of the policy.
    """
    values = _probabilities(tensors)
    legend = (
        f"rows: first operation, columns: second; p_jk in %, uniform {100 / values.size:.2f}; red above, blue below"
    )
    return _picture(values * values.size, 100 * values, names, names, legend)


def level_map(manifest: Manifest, tensors: Mapping[str, RawTensor]) -> bytes:
    """How often each operation and level is drawn, as a PNG heat map: rows are operations, columns signed levels.

    Args:
        manifest: of a bundle with levels.
        tensors: of the bundle.
    """
    table = log_levels(tensors)
    assert manifest.levels is not None
    assert table is not None
    relative, edges = relative_frequencies(table, manifest.levels.strength), manifest.levels.edges
    columns = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    legend = "times a uniform draw, by signed level; red above 1, blue below"
    return _picture(relative, relative, manifest.operations.names, columns, legend)


def _picture(relative: Table, shown: Table, rows: Sequence[str], columns: Sequence[str], legend: str) -> bytes:
    """A heat map as PNG.

    Args:
        relative: float64 [rows, columns], over uniform: 1 is white.
        shown: float64 [rows, columns], the numbers in the cells.
        rows, columns: their names.
        legend: a line below.
    """
    # Colours are scaled to the largest deviation: policies differ from uniform by a tenth or by a factor of ten.
    strength = (relative - 1) / max(float(np.abs(relative - 1).max()), 1e-4)
    font = ImageFont.load_default(FONT_SIZE)
    margin = max(round(font.getlength(name)) for name in (*rows, *columns)) + 16
    width, height = margin + CELL * len(columns), margin + CELL * len(rows)
    picture = Image.new("RGB", (max(width, margin + round(font.getlength(legend))) + 8, height + 32), "white")
    draw = ImageDraw.Draw(picture)
    for position, name in enumerate(rows):
        draw.text((margin - 8, margin + CELL * position + CELL // 2), name, "black", font, anchor="rm")
    for position, name in enumerate(columns):
        label = Image.new("RGB", (margin - 8, 20), "white")
        ImageDraw.Draw(label).text((0, 10), name, "black", font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (margin + CELL * position + CELL // 2 - 10, 0))
    for (j, k), value in np.ndenumerate(shown):
        left, top = margin + CELL * k, margin + CELL * j
        share = abs(float(strength[j, k]))
        colour = 255 + (np.where(strength[j, k] > 0, _HIGH, _LOW) - 255) * share
        draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), tuple(int(part) for part in colour))
        ink = "white" if share > 0.6 else "black"
        draw.text((left + CELL // 2 - 1, top + CELL // 2 - 1), f"{value:.2f}", ink, font, anchor="mm")
    draw.text((margin, height + 18), legend, "black", font, anchor="lm")
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def _probabilities(tensors: Mapping[str, RawTensor]) -> Any:
    return np.asarray(tensors[PROBABILITIES].array(), dtype=np.float64)


def _fence(text: str, shortest: int) -> str:
    return "`" * max(shortest, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _code(text: str) -> str:
    """A code span; `|` is replaced, because it would end a table's cell even inside the span."""
    text = printable(text).replace("|", "¦").strip() or "-"
    fence = _fence(text, 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _block(text: str, language: str = "text") -> str:
    """A fenced code block whose fence is longer than any in the text."""
    fence = _fence(text, 3)
    lines = "\n".join(printable(line) for line in text.split("\n"))
    return f"{fence}{language}\n{lines}\n{fence}"
