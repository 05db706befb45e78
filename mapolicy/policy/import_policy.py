"""Published dataset-level policies as bundles: AutoAugment's and Fast AutoAugment's lists, RandAugment, AutoAlbument.

Operations are mapped by name, magnitudes by value. Invert is Solarize at 0. An operation without a counterpart is left
out of its sub-policy and listed as lost. A file is read as data, never evaluated.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..bundle import canonical_json
from ..bundle.dataset_level import MAX_LOST, DatasetPolicy, Step, has_magnitude
from ..bundle.manifest_base import MAX_STEPS, MAX_SUB_POLICIES
from ..errors import UsageError
from ..runtime.files import read_regular_file
from ..runtime.sanitize import invalid_bundle, quoted
from . import autoalbument

LARGEST_LIST = 2**20  # bytes
LIST_FORM = "[[(operation, probability, level), ...], ...], numbers from 0 to 1"
# All that such a list is written with: its strings are names, so that quotes and brackets can be exchanged.
_NOT_PLAIN = re.compile(rb"[^\w\s\[\](),.'\"+-]")
_LAST_COMMA = re.compile(rb",(?=\s*\])")
_AS_JSON = bytes.maketrans(b"()'", b'[]"')
AUTOAUGMENT = ("cifar10", "imagenet", "svhn")
_RANDAUGMENT = re.compile(r"randaugment:([0-9]{1,2}),([0-9]{1,2})")
_RANDAUGMENT_BINS = 31  # of torchvision and of the paper's code: magnitudes 0 to 30

# Operation and value at levels 0 and 1: https://github.com/kakaobrain/fast-autoaugment, augmentations.py, augment_list.
_FAST_AUTOAUGMENT = {
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.3, 0.3),
    "TranslateX": (-0.45, 0.45),
    "TranslateY": (-0.45, 0.45),
    "Rotate": (-30.0, 30.0),
    "AutoContrast": (0.0, 0.0),
    "Equalize": (0.0, 0.0),
    "Solarize": (0.0, 256.0),
    "Posterize": (4.0, 8.0),
    "Contrast": (0.1, 1.9),
    "Color": (0.1, 1.9),
    "Brightness": (0.1, 1.9),
    "Sharpness": (0.1, 1.9),
}
_MIRRORED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")


def import_policy(name: str, drop_unknown: bool = False) -> DatasetPolicy:
    """A published policy as a bundle.

    Args:
        name: autoaugment-cifar10, autoaugment-imagenet or autoaugment-svhn (as the installed torchvision has them);
            randaugment:N,M with N up to 3 and M from 0 to 30 (torchvision's operations and ranges); or a file: a list
            of sub-policies as Fast AutoAugment's repository publishes them, `LIST_FORM` in Python or JSON, or a policy
            of AutoAlbument's in JSON.
        drop_unknown: leave out AutoAlbument's operations that have no counterpart here. They are the larger part of
            most such policies, so without this the file is rejected. In Fast AutoAugment's lists only Cutout has none.
            It is always left out, because training has a setting for it.

    Raises:
        UsageError: an unknown name, or a number out of range.
        InputError: the file is missing, or is no such policy.
    """
    family, _, dataset = name.partition("-")
    if family == "autoaugment" and dataset in AUTOAUGMENT:
        return _autoaugment(dataset)
    if match := _RANDAUGMENT.fullmatch(name):
        return _randaugment(int(match[1]), int(match[2]))
    if name.startswith(("autoaugment", "randaugment")) and not Path(name).exists():
        known = ", ".join(f"autoaugment-{dataset}" for dataset in AUTOAUGMENT)
        raise UsageError(name, "is not a policy that is known", f"name {known}, randaugment:N,M or a file")
    return _from_file(Path(name), drop_unknown)


def _made(
    what: str, sub_policies: Iterable[Sequence[Step]], lost: Sequence[str] = (), source: str = "", note: str = ""
) -> DatasetPolicy:
    from ..runtime.machine import versions  # imports torch: what is wrong with a policy is said before

    parts = [tuple(steps) for steps in sub_policies]
    if not any(parts):
        raise invalid_bundle(source, "no operation of it has a counterpart", "name a policy with some of AutoAugment's")
    if (more := len(lost) - MAX_LOST + 1) > 1:
        lost = [*lost[: MAX_LOST - 1], f"{more} more operations: no counterpart"]
    return DatasetPolicy.make(
        versions=versions(), source=what, sub_policies=parts, lost=tuple(lost), licence="", note=note
    )


def _step(operation: str, probability: float, value: float, mirrored: bool) -> Step:
    if operation == "Invert":
        operation, value, mirrored = "Solarize", 0.0, False
    value = value if has_magnitude(operation) else 0.0
    return Step(operation=operation, probability=probability, value=value, mirrored=mirrored and value != 0)


def _of_torchvision(operation: str, magnitudes: Any, index: int | None) -> float:
    """A magnitude of torchvision's tables, for a side of 1 pixel, in our units."""
    if magnitudes is None or magnitudes.ndim == 0 or index is None:
        return 0.0
    value = round(float(magnitudes[index]), 9)
    # Bits kept there, dropped here; a share of 255 there, a grey level here, where 170.000005 would spare level 170.
    return {"Posterize": 8 - value, "Solarize": round(255 * value, 3)}.get(operation, value)


def _autoaugment(dataset: str) -> DatasetPolicy:
    import torchvision
    from torchvision.transforms import v2

    kind = v2.AutoAugmentPolicy(dataset)
    augment = v2.AutoAugment(kind)
    sub_policies = []
    for pair in augment._get_policies(kind):
        steps = []
        for operation, probability, index in pair:
            magnitudes, signed = augment._AUGMENTATION_SPACE[operation]
            value = _of_torchvision(operation, magnitudes(10, 1, 1), index)
            steps.append(_step(operation, float(probability), value, signed))
        sub_policies.append(steps)
    return _made(f"AutoAugment, {dataset}, as torchvision {torchvision.__version__} has it", sub_policies)


def _randaugment(count: int, magnitude: int) -> DatasetPolicy:
    if not 1 <= count <= 3:  # 14 operations cubed are 2,744 sub-policies
        raise UsageError(f"randaugment:{count},{magnitude}", f"N is {count}, expected 1 to 3")
    if magnitude >= _RANDAUGMENT_BINS:
        why = f"M is {magnitude}, expected 0 to {_RANDAUGMENT_BINS - 1}"
        raise UsageError(f"randaugment:{count},{magnitude}", why)
    import torchvision
    from torchvision.transforms import v2

    steps = [
        _step(operation, 1.0, _of_torchvision(operation, magnitudes(_RANDAUGMENT_BINS, 1, 1), magnitude), signed)
        for operation, (magnitudes, signed) in v2.RandAugment._AUGMENTATION_SPACE.items()
    ]
    source = f"RandAugment, N {count}, M {magnitude} of 30, as torchvision {torchvision.__version__} has it"
    return _made(source, itertools.product(steps, repeat=count))


def _from_file(path: Path, drop_unknown: bool) -> DatasetPolicy:
    content = read_regular_file(path, LARGEST_LIST)
    source = str(path)
    if content.lstrip()[:1] == b"{":
        try:
            document = canonical_json.parse(content, autoalbument.DEPTH, autoalbument.KEYS, autoalbument.ENTRIES)
        except ValueError as problem:
            raise invalid_bundle(source, str(problem), autoalbument.REMEDY) from None
        return _from_autoalbument(document, source, drop_unknown)
    return _from_list(_parsed(content, source), source)


def _from_autoalbument(document: dict[str, Any], source: str, drop_unknown: bool) -> DatasetPolicy:
    sub_policies, shares = autoalbument.sequences(document, source)
    names = sorted(shares, key=lambda name: (-shares[name], name))
    total = f"{sum(shares.values()):.1%} of all draws"
    if shares and not drop_unknown:
        why = f"has operations without counterpart here, {total}: {', '.join(names)}"
        raise invalid_bundle(source, why, "add --drop-unknown to leave them out")
    lost = [f"{name}: no counterpart, {shares[name]:.2%} of all draws" for name in names]
    note = f"Without {', '.join(names)}: {total}." if names else ""
    return _made("AutoAlbument's policy", sub_policies, [*autoalbument.ABOUT_PIXELS, *lost], source, note[:4000])


def _parsed(content: bytes, source: str) -> Any:
    """A list in JSON, or in Python's spelling of it: tuples, single quotes, a comma before the end."""
    remedy = f"name a file with the list alone, {LIST_FORM}"
    if odd := _NOT_PLAIN.search(content):
        raise invalid_bundle(
            source, f"has the character {odd[0].decode('latin-1')!a}, which no list of this kind has", remedy
        )
    text = _LAST_COMMA.sub(b"", content.translate(_AS_JSON))
    text = re.sub(rb"\b(True|False)\b", lambda found: found[0].lower(), text)  # so that they are named as wrong
    try:
        return canonical_json.parse(text, 3, 0, 1 + MAX_SUB_POLICIES * (1 + MAX_STEPS))
    except ValueError as problem:
        raise invalid_bundle(source, str(problem), remedy) from None


def _from_list(found: Any, source: str) -> DatasetPolicy:
    remedy = f"expected {LIST_FORM}"
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_SUB_POLICIES:
        raise invalid_bundle(source, f"is {quoted(found)}, expected 1 to {MAX_SUB_POLICIES} sub-policies", remedy)
    lost: Counter[str] = Counter()
    sub_policies = []
    for position, steps in enumerate(found):
        if not isinstance(steps, list) or len(steps) > MAX_STEPS:
            why = f"sub-policy {position} is {quoted(steps)}, expected at most {MAX_STEPS} steps"
            raise invalid_bundle(source, why, remedy)
        converted = [
            _fast_autoaugment_step(step, f"sub-policy {position} step {number}", source)
            for number, step in enumerate(steps)
        ]
        lost.update(step for step in converted if isinstance(step, str))
        sub_policies.append([step for step in converted if isinstance(step, Step)])
    names = sorted(lost)
    lines = [f"{name} in {lost[name]} steps: no counterpart" for name in names]
    return _made(f"list of {len(sub_policies)} sub-policies", sub_policies, lines, source)


def _fast_autoaugment_step(step: Any, place: str, source: str) -> Step | str:
    """A step, or the name of an operation that has no counterpart."""
    remedy = f"expected {LIST_FORM}"
    if not isinstance(step, list) or len(step) != 3:
        raise invalid_bundle(source, f"{place} is {quoted(step)}, expected operation, probability and level", remedy)
    operation, probability, level = step
    if not (isinstance(operation, str) and operation.isidentifier() and operation.isascii() and len(operation) <= 40):
        raise invalid_bundle(source, f"{place}: operation is {quoted(operation)}, expected a name", remedy)
    for name, value in (("probability", probability), ("level", level)):
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise invalid_bundle(source, f"{place}: {name} is {quoted(value)}, expected a number from 0 to 1", remedy)
    if operation == "Invert":
        return _step(operation, float(probability), 0.0, False)
    if operation not in _FAST_AUTOAUGMENT:
        return operation
    low, high = _FAST_AUTOAUGMENT[operation]
    number = level * (high - low) + low
    if operation == "Posterize":
        number = 8.0 - int(number)
    if operation in _ENHANCERS:
        number -= 1
    return _step(operation, float(probability), round(number, 9), operation in _MIRRORED)
