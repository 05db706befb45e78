"""Published dataset-level policies as bundles: AutoAugment's lists, Fast AutoAugment's, RandAugment's N and M.

Operations are mapped by name, magnitudes by value. Invert is Solarize at 0. What has no counterpart is left out of its
sub-policy and listed as lost.
"""

import ast
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError, UsageError
from .files import read_regular_file
from .published import DatasetPolicy, Step, has_magnitude
from .runtime import versions
from .sealed import MAX_STEPS, MAX_SUB_POLICIES
from .space import OPERATION_NAMES

LARGEST_LIST = 2**20  # bytes
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


def import_policy(name: str) -> DatasetPolicy:
    """A published policy as a bundle.

    Args:
        name: autoaugment-cifar10, autoaugment-imagenet or autoaugment-svhn (as the installed torchvision has them);
            randaugment:N,M with N up to 3 and M from 0 to 30 (torchvision's operations and ranges); or a file with a
            list of sub-policies as Fast AutoAugment's repository publishes them, `[[(name, probability, level), ...],
            ...]` in Python or JSON, levels from 0 to 1.

    Raises:
        UsageError: a name or a number that cannot be meant.
        InputError: the file is missing, or is no such list.
    """
    family, _, dataset = name.partition("-")
    if family == "autoaugment" and dataset in AUTOAUGMENT:
        return _autoaugment(dataset)
    if match := _RANDAUGMENT.fullmatch(name):
        return _randaugment(int(match[1]), int(match[2]))
    if name.startswith(("autoaugment", "randaugment")) and not Path(name).exists():
        known = ", ".join(f"autoaugment-{dataset}" for dataset in AUTOAUGMENT)
        raise UsageError(name, "is not a policy that is known", f"name {known}, randaugment:N,M or a file")
    return _from_list(Path(name))


def _made(source: str, sub_policies: Iterable[Sequence[Step]], lost: Counter[str]) -> DatasetPolicy:
    parts = [tuple(steps) for steps in sub_policies]
    return DatasetPolicy.make(
        versions=versions(),
        source=source,
        sub_policies=parts,
        lost=[f"{operation} in {count} steps: no counterpart" for operation, count in sorted(lost.items())],
        licence="",
        note="",
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
    return _made(f"AutoAugment, {dataset}, as torchvision {torchvision.__version__} has it", sub_policies, Counter())


def _randaugment(count: int, magnitude: int) -> DatasetPolicy:
    import torchvision
    from torchvision.transforms import v2

    if not 1 <= count <= 3:  # 14 operations cubed are 2,744 sub-policies
        raise UsageError(f"randaugment:{count},{magnitude}", f"N is {count}, expected 1 to 3")
    if magnitude >= _RANDAUGMENT_BINS:
        why = f"M is {magnitude}, expected 0 to {_RANDAUGMENT_BINS - 1}"
        raise UsageError(f"randaugment:{count},{magnitude}", why)
    steps = [
        _step(operation, 1.0, _of_torchvision(operation, magnitudes(_RANDAUGMENT_BINS, 1, 1), magnitude), signed)
        for operation, (magnitudes, signed) in v2.RandAugment._AUGMENTATION_SPACE.items()
    ]
    source = f"RandAugment, N {count}, M {magnitude} of 30, as torchvision {torchvision.__version__} has it"
    return _made(source, itertools.product(steps, repeat=count), Counter())


def _from_list(path: Path) -> DatasetPolicy:
    content = read_regular_file(path, LARGEST_LIST)
    try:
        text = content.decode()
        try:
            found = json.loads(text)
        except ValueError:
            found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise InputError(str(path), "is neither JSON nor a Python list", "name a file with the list alone") from None
    remedy = "expected [[(operation, probability, level), ...], ...]"
    if not isinstance(found, list | tuple) or not 1 <= len(found) <= MAX_SUB_POLICIES:
        raise InputError(str(path), f"is not a list of 1 to {MAX_SUB_POLICIES} sub-policies", remedy)
    lost: Counter[str] = Counter()
    sub_policies = []
    for position, steps in enumerate(found):
        if not isinstance(steps, list | tuple) or len(steps) > MAX_STEPS:
            raise InputError(str(path), f"sub-policy {position} is not a list of at most {MAX_STEPS} steps", remedy)
        try:
            converted = [_fast_autoaugment_step(*step) for step in steps]
        except (OverflowError, TypeError, ValueError):
            raise InputError(str(path), f"sub-policy {position} has a step that cannot be read", remedy) from None
        lost.update(step for step in converted if isinstance(step, str))
        sub_policies.append([step for step in converted if isinstance(step, Step)])
    if not any(sub_policies):
        raise InputError(str(path), "no operation of it has a counterpart", f"known are {', '.join(OPERATION_NAMES)}")
    return _made(f"list of {len(sub_policies)} sub-policies", sub_policies, lost)


def _fast_autoaugment_step(operation: str, probability: float, level: float) -> Step | str:
    """A step, or the name of an operation that has no counterpart."""
    probability, level = float(probability), float(level)
    if not (isinstance(operation, str) and operation.isidentifier() and len(operation) <= 40):
        raise ValueError("no operation's name")
    if not (0 <= probability <= 1 and 0 <= level <= 1):
        raise ValueError("out of range")
    if operation == "Invert":
        return _step(operation, probability, 0.0, False)
    if operation not in _FAST_AUTOAUGMENT:
        return operation
    low, high = _FAST_AUTOAUGMENT[operation]
    value = level * (high - low) + low
    if operation == "Posterize":
        value = 8.0 - int(value)
    if operation in _ENHANCERS:
        value -= 1
    return _step(operation, probability, round(value, 9), operation in _MIRRORED)
