"""Schedules of Population Based Augmentation (Ho, Liang, Stoica, Abbeel and Chen, ICML 2019) as stages of ours.

A policy of theirs has each of 15 operations twice, with a probability and a level from 0 to 10. It is spelled as 60
whole numbers, probabilities in tenths. A schedule is such a policy for each part of the search, whose length is
stretched to the run's. Forms of a schedule, all read as data:

- The log of a search, as the repository publishes it: a line `[trial, copied trial, epoch, copied epoch, old, new]` for
  each change, in Python or JSON. A log does not say how long its search was.
- `[[epochs, policy], ...]`: the form of its pickles, as JSON or Python. A policy is also a list of (operation,
  probability, level), probabilities from 0 to 1.
- `[policy, ...]`, one policy of whole numbers for each epoch; or a single one, for a whole run.

A step draws 0, 1 or 2 operations; Cutout takes its turn among them. It has no counterpart here, so Identity stands in
its place: what is left out would give the others its turns.

Source: https://github.com/arcelien/pba, pba/utils.py (parse_log), pba/data_utils.py (parse_policy),
pba/augmentation_transforms.py (levels), pba/augmentation_transforms_hp.py (apply_policy).
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from ..bundle import canonical_json
from ..bundle.dataset_level import MAX_CHOICES, MAX_STAGES, Stage, Step, has_magnitude
from ..errors import UsageError
from ..runtime.sanitize import invalid_bundle, quoted
from .pba_schedules import SCHEDULES

COUNTS = (0.2, 0.3, 0.5)  # chances of 0, 1 and 2 operations
# In the order of the 60 numbers, which name all of them twice.
OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness"),
    *("Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"),
)
NAMES = tuple(SCHEDULES)
REMEDY = "name a schedule as Population Based Augmentation's repository has it"
EPOCHS = (1, 100_000)  # that a search may last
_NUMBERS, _TENTHS, _LARGEST_LEVEL = 4 * len(OPERATIONS), 10, 10.0
_MOST_BITS = 7  # theirs may drop all 8 bits, which leaves a black image
_LINES = 10_000
_DEPTH, _KEYS, _ENTRIES = 6, 200, 20_000
_NOT_PLAIN = re.compile(rb"[^\w\s\[\](){}:,.'\"/+-]")
_LOG = re.compile(rb"""\s*\[\s*['"][^'"\[\]]*['"]\s*,""")

Part = tuple[int, list[Step]]  # epochs, and the policy of these epochs


def is_log(content: bytes) -> bool:
    """Whether a file looks like a search's log: a list that begins with the name of a trial."""
    return _LOG.match(content) is not None


def is_schedule(found: Any) -> bool:
    """Whether a parsed list is a schedule, rather than sub-policies: it holds whole numbers where these hold steps."""
    first = found[0] if isinstance(found, list) and found else None
    return type(first) is int or (isinstance(first, list) and bool(first) and type(first[0]) is int)


def published(name: str) -> list[Stage]:
    """The schedule that `NAMES` lists under this name."""
    return _stages([(epochs, _policy([*numbers], name, name)) for epochs, numbers in SCHEDULES[name]], name)


def stages_of_log(content: bytes, source: str, epochs: int | None) -> list[Stage]:
    """The stages of a search's log.

    Args:
        content: the file's.
        source: its name, for the error.
        epochs: length of the search.

    Raises:
        UsageError: the length is missing, or shorter than the log.
        InputError: a line is not of the log's form.
    """
    lines = [line for line in content.splitlines() if line.strip()]
    if len(lines) > _LINES:
        raise invalid_bundle(source, f"has {len(lines)} lines, more than the {_LINES} allowed", REMEDY)
    rows = [_row(line, f"line {number}", source) for number, line in enumerate(lines, 1)]
    # Some logs begin with the lines of other trials: what counts is the chain of copies that ends with the last line.
    breaks = [place for place, (row, after) in enumerate(itertools.pairwise(rows), 1) if row[0] != after[1]]
    rows = rows[breaks[-1] if breaks else 0 :]
    starts = [copied for _, _, copied, _, _ in rows]
    if starts != sorted(starts):
        raise invalid_bundle(source, "the epochs at which its trials were copied do not ascend", REMEDY)
    if epochs is None:
        why = "is the log of a search and does not say how many epochs the search had"
        raise UsageError(ascii(source)[1:-1], why, "add --epochs N: 200 for CIFAR-10's published log, 160 for SVHN's")
    if epochs < starts[-1]:
        raise UsageError("--epochs", f"{epochs} is less than the {starts[-1]} of the log's last line")
    policies = [rows[0][3], *(new for *_, new in rows)]
    lengths = [end - start for start, end in itertools.pairwise([0, *starts, epochs])]
    return _stages(zip(lengths, policies, strict=True), source)


def stages_of_list(found: list[Any], source: str) -> list[Stage]:
    """The stages of a schedule that is a list; `is_schedule` says of a list whether it is one.

    Raises:
        InputError: it is no such schedule.
    """
    if type(found[0]) is int:
        return _stages([(1, _policy(found, "policy", source))], source)
    if all(isinstance(part, list) and len(part) == _NUMBERS for part in found):
        return _stages([(1, _policy(part, f"epoch {place}", source)) for place, part in enumerate(found)], source)
    parts: list[Part] = []
    for place, part in enumerate(found):
        where = f"part {place}"
        if not isinstance(part, list) or len(part) != 2:
            raise _refused(source, where, quoted(part), "epochs and a policy")
        parts.append((_whole(part[0], f"{where}: epochs", source, *EPOCHS), _policy(part[1], where, source)))
    return _stages(parts, source)


def _row(line: bytes, place: str, source: str) -> tuple[str, str, int, list[Step], list[Step]]:
    """A line of a log: trial, the trial it copied, the epoch it was copied at, and both policies."""
    if odd := _NOT_PLAIN.search(line):
        raise _refused(source, place, ascii(odd[0].decode("latin-1")), "a log's characters")
    text = line if b"'" not in line else line.replace(b"'", b'"')
    for python, json in ((b"True", b"true"), (b"False", b"false"), (b"None", b"null")):
        text = re.sub(rb"\b" + python + rb"\b", json, text)
    try:
        row = canonical_json.parse(text, _DEPTH, _KEYS, _ENTRIES)
    except ValueError as problem:
        raise invalid_bundle(source, f"{place} {problem}", REMEDY) from None
    if not isinstance(row, list) or len(row) != 6:
        raise _refused(source, place, quoted(row), "a list of 6: trial, copied trial, epoch, copied epoch, old, new")
    for trial in row[:2]:
        if not isinstance(trial, str):
            raise _refused(source, place, quoted(trial), "a trial's name")
    _, copied = (_whole(epoch, f"{place}: epoch", source, 0, EPOCHS[1]) for epoch in row[2:4])
    old, new = (_policy(part.get("hp_policy") if isinstance(part, dict) else part, place, source) for part in row[4:])
    return row[0], row[1], copied, old, new


def _policy(found: Any, place: str, source: str) -> list[Step]:
    """The steps of a policy that can be taken; of Cutout, Identity."""
    if not isinstance(found, list):
        raise _refused(source, place, quoted(found), "a policy")
    if found and type(found[0]) is int:
        if len(found) != _NUMBERS:
            raise _refused(source, place, f"{len(found)} numbers", f"{_NUMBERS}: {2 * len(OPERATIONS)} operations")
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [
            [operation, _whole(tenths, place, source, 0, _TENTHS) / _TENTHS, level]
            for operation, (tenths, level) in zip(OPERATIONS * 2, pairs, strict=True)
        ]
    if len(found) > MAX_CHOICES:
        raise _refused(source, place, f"{len(found)} steps", f"at most {MAX_CHOICES}")
    steps = [_step(each, f"{place} step {number}", source) for number, each in enumerate(found)]
    return [step for step in steps if step.probability]


def _step(found: Any, place: str, source: str) -> Step:
    if not isinstance(found, list) or len(found) != 3:
        raise _refused(source, place, quoted(found), "operation, probability and level")
    name, probability, level = found
    if name not in OPERATIONS:
        raise _refused(source, f"{place}: operation", quoted(name), f"one of the {len(OPERATIONS)} of this method")
    for what, value, most in (("probability", probability, 1.0), ("level", level, _LARGEST_LEVEL)):
        if type(value) not in (int, float) or not 0 <= value <= most:
            raise _refused(source, f"{place}: {what}", quoted(value), f"a number from 0 to {most:g}")
    operation, value, mirrored = _value(name, float(level))
    value = round(value, 9) if has_magnitude(operation) else 0.0
    return Step(operation=operation, probability=float(probability), value=value, mirrored=mirrored and value != 0)


def _value(name: str, level: float) -> tuple[str, float, bool]:
    """Our operation and value for theirs at a level, and whether its direction is drawn."""
    match name:
        case "Cutout":
            return "Identity", 0.0, False
        case "Invert":
            return "Solarize", 0.0, False
        case "Rotate":
            return name, float(int(level * 3)), True
        case "Posterize":
            return name, float(min(_MOST_BITS, 4 + int(level * 4 / 10))), False
        case "Solarize":
            return name, 256.0 - int(level * 256 / 10), False
        case "ShearX" | "ShearY":
            return name, level * 0.03, True
        case "TranslateX" | "TranslateY":
            return name, int(level) / 32, True  # pixels of CIFAR's and SVHN's images
        case _:
            return name, level * 0.18 - 0.9, False


def _stages(parts: Any, source: str) -> list[Stage]:
    """Stages from epochs and policies; equal neighbours become one."""
    merged: list[Part] = []
    for epochs, steps in parts:
        if merged and merged[-1][1] == steps:
            merged[-1] = (merged[-1][0] + epochs, steps)
        elif epochs:
            merged.append((epochs, steps))
    if len(merged) > MAX_STAGES:
        raise invalid_bundle(source, f"has {len(merged)} stages, more than the {MAX_STAGES} allowed", REMEDY)
    total = sum(epochs for epochs, _ in merged)
    if not any(steps for _, steps in merged):
        raise invalid_bundle(source, "no step of it is ever taken", REMEDY)
    ends = itertools.accumulate(epochs for epochs, _ in merged)
    return [
        Stage(until=1.0 if end == total else round(end / total, 9), counts=COUNTS, steps=tuple(steps))
        for end, (_, steps) in zip(ends, merged, strict=True)
    ]


def lost(stages: Sequence[Stage]) -> list[str]:
    """What of a schedule cannot be said here."""
    uses, cutout, start = 0.0, 0.0, 0.0
    for stage in stages:
        for step, often in zip(stage.steps, stage.uses(), strict=True):
            uses += (stage.until - start) * often
            cutout += (stage.until - start) * often * (step.operation == "Identity")
        start = stage.until
    return [f"Cutout: no counterpart, {cutout / uses:.2%} of all draws; Identity takes its turn"] if cutout else []


def _whole(value: Any, place: str, source: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _refused(source, place, quoted(value), f"a whole number from {least} to {most:,}")
    return value


def _refused(source: str, place: str, found: str, expected: str) -> Exception:
    return invalid_bundle(source, f"{place}: found {found}, expected {expected}", REMEDY)
