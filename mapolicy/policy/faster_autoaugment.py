"""Faster AutoAugment's policies (Hataya, Zdenek, Yoshizoe and Nakayama, ECCV 2020) as sub-policies of ours.

Its repository saves a policy as a pickle of tensors, which nothing here opens. Where torch may open it, its owner
writes the same state as JSON:

    state = torch.load("20.pt", weights_only=True)
    json.dump({name: tensor.tolist() for name, tensor in state.items()}, open("policy.json", "w"))

A sub-policy has stages. A stage draws one of 15 operations by a softmax of its weights; the operation is applied with
its own probability, at its own magnitude. Ours are evenly drawn sequences, as for AutoAlbument (`autoalbument`).

Source: https://github.com/moskomule/dda, faster_autoaugment/policy.py (order of the operations, temperature),
dda/operations.py (scales) and dda/functional.py.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from ..bundle.dataset_level import Step, value_range
from ..bundle.manifest_base import MAX_STEPS
from ..runtime.sanitize import invalid_bundle, quoted
from .autoalbument import SEQUENCES, Member, Stage, drawn_evenly

DEPTH, KEYS, ENTRIES = 5, 20_000, 200_000  # of the JSON: 10 sub-policies of 2 stages have 1,000 keys
TEMPERATURE = 0.05  # of the softmax; the state has no record of it, and this is what the repository always uses
# In the order of the state; the repository lists TranslateY twice and TranslateX never.
OPERATIONS = (
    *("ShearX", "ShearY", "TranslateY", "TranslateY", "Rotate", "HorizontalFlip", "Invert", "Solarize", "Posterize"),
    *("Contrast", "Saturate", "Brightness", "Sharpness", "AutoContrast", "Equalize"),
)
ABOUT_PIXELS = (
    "a draw for a whole batch: each image has its own",
    f"exact chances within a stage: {SEQUENCES} sequences stand for them",
)
REMEDY = "write the state of a policy of Faster AutoAugment's repository as JSON"
_SCALES = {"ShearX": 0.3, "ShearY": 0.3, "TranslateY": 0.45, "Rotate": 30.0, "Solarize": 255.0, "Posterize": 8.0}
_BLENDS = {"Contrast": "Contrast", "Saturate": "Color", "Brightness": "Brightness", "Sharpness": "Sharpness"}
_WEIGHTS = re.compile(r"sub_policies\.(0|[1-9]\d{0,3})\.stages\.(0|[1-9]\d{0,1})\._weights")


def is_state(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object looks like a policy's state: it names a stage's weights."""
    return any(_WEIGHTS.fullmatch(name) for name in document)


def sequences(document: Mapping[str, Any], source: str) -> tuple[list[list[Step]], dict[str, float]]:
    """Convert a policy's state to evenly drawn sequences; also say what is left out.

    Args:
        document: the state as JSON.
        source: the file's name, for the error.

    Returns:
        The sequences of steps, one of which is drawn evenly for each image; and the share of draws that each unknown
        operation has, by name.

    Raises:
        InputError: a tensor is missing or has another shape, or a number is no number.
    """
    places = sorted(tuple(map(int, found.groups())) for name in document if (found := _WEIGHTS.fullmatch(name)))
    policies: list[list[Stage]] = []
    for position, number in places:
        if number == 0:
            policies.append([])
        # They ascend, so a gap shows as a place that is not the next.
        if not policies or (position, number) != (len(policies) - 1, len(policies[-1])) or number >= MAX_STEPS:
            raise _refused(source, f"sub-policy {position} stage {number}", "a gap before it", "all stages, at most 8")
        policies[-1].append(_stage(document, f"sub_policies.{position}.stages.{number}", source))
    if len(policies) > SEQUENCES // 2:
        raise _refused(source, "sub-policies", str(len(policies)), f"1 to {SEQUENCES // 2}")
    return drawn_evenly(policies, [1 / len(policies)] * len(policies))


def _stage(document: Mapping[str, Any], place: str, source: str) -> Stage:
    """The operations of a stage with their chances."""
    weights = document[f"{place}._weights"]
    if not isinstance(weights, list) or len(weights) != len(OPERATIONS):
        raise _refused(source, f"{place}._weights", quoted(weights), f"{len(OPERATIONS)} numbers")
    logits = [_number(weight, f"{place}._weights", source) / TEMPERATURE for weight in weights]
    shares = [math.exp(logit - max(logits)) for logit in logits]
    members = [
        _member(document, f"{place}.operations.{number}", name, source) for number, name in enumerate(OPERATIONS)
    ]
    return [(member, share / sum(shares)) for member, share in zip(members, shares, strict=True) if share]


def _member(document: Mapping[str, Any], place: str, name: str, source: str) -> Member:
    probability = min(1.0, max(0.0, _single(document, f"{place}._probability", source)))
    if name in _SCALES or name in _BLENDS:
        magnitude = _single(document, f"{place}._magnitude", source)
    if name in _BLENDS:
        return _made(name, _BLENDS[name], probability, -2 * magnitude)  # (1 - m) image + m other, m up to 2
    match name:
        case "HorizontalFlip":
            return name
        case "Invert":
            return _made(name, "Solarize", probability, 0.0)
        case "Posterize":
            return _made(name, name, probability, float(math.floor(_SCALES[name] * magnitude)))
        case "Solarize":
            return _made(name, name, probability, _SCALES[name] * magnitude)
        case "AutoContrast" | "Equalize":
            return _made(name, name, probability, 0.0)
        case _:
            return _made(name, name, probability, _SCALES[name] * magnitude, mirrored=True)


def _made(name: str, operation: str, probability: float, value: float, mirrored: bool = False) -> Member:
    low, high = value_range(operation)
    value = round(value, 9)
    if not (low <= value <= high and (not mirrored or low <= -value <= high)):
        return f"{name} beyond its range"
    return Step(operation=operation, probability=probability, value=value, mirrored=mirrored and value != 0)


def _single(document: Mapping[str, Any], name: str, source: str) -> float:
    """A tensor of one number, which is a list in JSON."""
    found = document.get(name)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return _number(found, name, source)


def _number(value: Any, place: str, source: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= 1e6:
        raise _refused(source, place, quoted(value), "a number")
    return float(value)


def _refused(source: str, place: str, found: str, expected: str) -> Exception:
    return invalid_bundle(source, f"{place}: found {found}, expected {expected}", REMEDY)
