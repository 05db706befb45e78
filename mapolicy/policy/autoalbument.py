"""AutoAlbument's policies, which are albumentations' JSON, as sub-policies of ours.

    Compose [ OneOf [ Sequential [ OneOf [operation, ..., NoOp], ... ], ... ], Normalize, ToTensorV2 ]

Each stage of a sub-policy is one of 14 operations, drawn by `p`, at one fixed value. Our sub-policies are evenly drawn
sequences. So each of theirs becomes a number of sequences in which every operation of a stage occurs in proportion to
its probability, independently of the other stages. Five of the 14 operations have a counterpart: contrast
(albumentations' is about black, as Pillow's Brightness), Solarize, Rotate and the shifts. Albumentations itself is not
needed.

Source: https://github.com/albumentations-team/autoalbument, policy_model.py and policy_operations.py; albumentations,
functional.py (contrast, solarize, shift_scale_rotate).
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..bundle.dataset_level import Step, value_range
from ..bundle.manifest_base import MAX_STEPS
from ..runtime.sanitize import invalid_bundle, quoted

SEQUENCES = 1000  # of a policy; its stages' chances are met to their sub-policies' number in 1000
DEPTH, KEYS, ENTRIES = 16, 64, 100_000  # of the JSON: of a policy of 10 sub-policies 12, 16 and 8,000
ABOUT_PIXELS = (
    "reflected borders: pixels from outside have the fill colour",
    "linear interpolation: the nearest pixel is taken",
    f"exact chances within a stage: {SEQUENCES} sequences stand for them",
)
REMEDY = "name a policy that AutoAlbument has written"
_LONGEST_NAME = 80


def sequences(document: dict[str, Any], source: str) -> tuple[list[list[Step]], dict[str, float]]:
    """Convert a policy's sub-policies to evenly drawn sequences; also say what is left out.

    Args:
        document: the file's JSON.
        source: its name, for the error.

    Returns:
        The sequences, at most `SEQUENCES`, each with at most one step for each stage; and for each operation without a
        counterpart its share of all stages' draws, 0 to 1.

    Raises:
        InputError: it is not laid out as AutoAlbument's policies are, or a number is no number.
    """
    parts = _parts(document.get("transform"), "Compose", "transform", source)
    policies = [part for part in parts if _name(part, "transform", source) == "OneOf"]
    if len(policies) != 1:
        raise _refused(source, "transform", f"{len(policies)} of OneOf", "one: the sub-policies")
    place = "sub-policies"
    sub_policies = _parts(policies[0], "OneOf", place, source)
    if not 1 <= len(sub_policies) <= SEQUENCES // 2:
        raise _refused(source, place, str(len(sub_policies)), f"1 to {SEQUENCES // 2}")
    chances = _chances([_number(part.get("p"), f"{place}: p", source) for part in sub_policies], place, source)
    drawn: list[list[Stage]] = []
    for position, sub_policy in enumerate(sub_policies):
        place = f"sub-policy {position}"
        stages = _parts(sub_policy, "Sequential", place, source)
        if not 1 <= len(stages) <= MAX_STEPS:
            raise _refused(source, place, f"{len(stages)} stages", f"1 to {MAX_STEPS}")
        drawn.append([_stage(stage, f"{place} stage {number}", source) for number, stage in enumerate(stages)])
    return drawn_evenly(drawn, chances)


Member = Step | str | None
Stage = list[tuple[Member, float]]  # what a stage draws from, each with its chance


def drawn_evenly(
    policies: Sequence[Sequence[Stage]], chances: Sequence[float]
) -> tuple[list[list[Step]], dict[str, float]]:
    """Sub-policies whose stages draw an operation, as evenly drawn sequences.

    Args:
        policies: each with its stages. A member is a step, the name of what has no counterpart, or None for nothing.
        chances: of the sub-policies; their sum is 1.

    Returns:
        As of `sequences`.
    """
    made: list[list[Step]] = []
    lost: defaultdict[str, float] = defaultdict(float)
    for position, rows in enumerate(_shares(chances, SEQUENCES)):
        columns = []
        for number, drawn in enumerate(policies[position]):
            for member, chance in drawn:
                if isinstance(member, str):
                    lost[member] += chance * chances[position] / len(policies[position])
            counts = _shares([chance for _, chance in drawn], rows)
            column = [member for (member, _), count in zip(drawn, counts, strict=True) for _ in range(count)]
            random.Random(f"{position},{number}").shuffle(column)
            columns.append(column)
        made += [[step for step in row if isinstance(step, Step)] for row in zip(*columns, strict=True)]
    return made, dict(lost)


def _stage(stage: Any, place: str, source: str) -> Stage:
    """The members of a stage, each a step, the name of what has no counterpart, or nothing; with their chances."""
    members = _parts(stage, "OneOf", place, source)
    chances = _chances([_number(part.get("p"), f"{place}: p", source) for part in members], place, source)
    return [(_member(part, place, source), chance) for part, chance in zip(members, chances, strict=True)]


def _member(part: dict[str, Any], place: str, source: str) -> Member:
    name = _name(part, place, source)

    def fixed(key: str) -> float | None:
        """The one value of a limit; None where it is a range."""
        low, high = _limits(part.get(key), f"{place} {name}: {key}", source)
        return low if low == high else None

    found: tuple[str, float | None]
    match name:
        case "NoOp":
            return None
        case "Solarize":
            found = "Solarize", fixed("threshold")
        case "RandomBrightnessContrast" if fixed("brightness_limit") == 0:
            found = "Brightness", fixed("contrast_limit")
        case "RandomBrightnessContrast":
            return "brightness that is added"
        case "ShiftScaleRotate":
            moved = {key: fixed(key) for key in ("shift_limit_x", "shift_limit_y", "scale_limit", "rotate_limit")}
            if all(value == 0 for value in moved.values()):
                return None
            changed = [key for key, value in moved.items() if value != 0]
            if len(changed) != 1 or changed == ["scale_limit"]:
                return "scaling" if changed == ["scale_limit"] else "shift, scaling and rotation at once"
            value = moved[changed[0]]
            # A shift moves the image; ours moves the window on it.
            found = {
                "shift_limit_x": ("TranslateX", None if value is None else -value),
                "shift_limit_y": ("TranslateY", None if value is None else -value),
                "rotate_limit": ("Rotate", value),
            }[changed[0]]
        case _:
            return name
    operation, setting = found
    low, high = value_range(operation)
    if setting is None or not low <= setting <= high:
        return f"{name} {'of a range' if setting is None else 'beyond its range'}"
    return Step(operation=operation, probability=1.0, value=round(setting, 9), mirrored=False)


def _parts(part: Any, expected: str, place: str, source: str) -> list[dict[str, Any]]:
    """The transforms within a composition."""
    if not isinstance(part, dict):
        raise _refused(source, place, quoted(part), f"a {expected} of albumentations")
    name = _name(part, place, source)
    inner = part.get("transforms")
    if name != expected or not isinstance(inner, list) or not all(isinstance(each, dict) for each in inner):
        raise _refused(source, place, name, f"a {expected} with transforms")
    return inner


def _name(part: dict[str, Any], place: str, source: str) -> str:
    """`albumentations.core.composition.OneOf` and `OneOf` are both OneOf."""
    full = part.get("__class_fullname__")
    name = full.rpartition(".")[2] if isinstance(full, str) else ""
    if not (name.isidentifier() and name.isascii() and len(name) <= _LONGEST_NAME):
        raise _refused(source, f"{place}: __class_fullname__", quoted(full), "a transform's name")
    return name


def _limits(value: Any, place: str, source: str) -> tuple[float, float]:
    """[low, high], or a number for either end."""
    if isinstance(value, list) and len(value) == 2:
        return _number(value[0], place, source), _number(value[1], place, source)
    number = _number(value, place, source)
    return number, number


def _number(value: Any, place: str, source: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= 1e6:
        raise _refused(source, place, quoted(value), "a number")
    return float(value)


def _chances(weights: Sequence[float], place: str, source: str) -> list[float]:
    """OneOf draws by its members' `p` over their sum, and takes what it has drawn."""
    if not weights or min(weights) < 0 or sum(weights) <= 0:
        raise _refused(source, f"{place}: p", "no chance", "p of 0 or more, one of them above")
    return [weight / sum(weights) for weight in weights]


def _shares(chances: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the chances' proportions that sum to `total`: largest remainders."""
    exact = [chance * total for chance in chances]
    counts = [int(number) for number in exact]
    order = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _refused(source: str, place: str, found: str, expected: str) -> Exception:
    return invalid_bundle(source, f"{place}: found {found}, expected {expected}", REMEDY)
