"""Published dataset-level policies as bundles: lists of sub-policies, RandAugment, AutoAlbument, schedules.

AutoAugment, Fast AutoAugment and DADA are lists of sub-policies; Population Based Augmentation is a schedule (`pba`).
Faster AutoAugment's own policies, and AutoAlbument's, draw the operations of a sub-policy too.
Operations are mapped by name, magnitudes by value. Invert is Solarize at 0. An operation without a counterpart is left
out of its sub-policy and listed as lost. A file is read as data, never evaluated.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bundle import canonical_json
from ..bundle.dataset_level import MAX_LOST, DatasetPolicy, Stage, Step, has_magnitude
from ..bundle.manifest_base import MAX_STEPS, MAX_SUB_POLICIES
from ..errors import UsageError
from ..runtime.files import read_regular_file
from ..runtime.sanitize import invalid_bundle, quoted
from . import autoalbument, faster_autoaugment, pba

LARGEST_LIST = 2**20  # bytes
LIST_FORM = "[[(operation, probability, level), ...], ...], numbers from 0 to 1"
# All that such a list is written with: its strings are names, so that quotes and brackets can be exchanged.
_NOT_PLAIN = re.compile(rb"[^\w\s\[\](),.'\"+-]")
_LAST_COMMA = re.compile(rb",(?=\s*\])")
_AS_JSON = bytes.maketrans(b"()'", b'[]"')
# `NAME = `, maybe after others of the kind, at the beginning of a line.
_ASSIGNED = re.compile(rb"^(?:[A-Za-z_]\w{0,199}[ \t]*=[ \t]*)+(?=[\[(])", re.MULTILINE)
_MOST_LISTS = 200
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


def import_policy(
    name: str, drop_unknown: bool = False, epochs: int | None = None, which: str | None = None
) -> DatasetPolicy:
    """A published policy as a bundle.

    Args:
        name: autoaugment-cifar10, autoaugment-imagenet or autoaugment-svhn (as the installed torchvision has them);
            randaugment:N,M with N up to 3 and M from 0 to 30 (torchvision's operations and ranges); pba-cifar10 or
            pba-svhn; or a file: a list of sub-policies as Fast AutoAugment's repository publishes them, `LIST_FORM` in
            Python or JSON; such lists with names, as DADA's genotype.py has them or as a JSON object; a policy of
            AutoAlbument's or Faster AutoAugment's in JSON; or a schedule of Population Based Augmentation's.
        drop_unknown: leave out operations that have no counterpart here. They are the larger part of most policies of
            AutoAlbument's, so without this the file is rejected. In Fast AutoAugment's and DADA's lists only Cutout has
            none. It is always left out, because training has a setting for it.
        epochs: of the search that wrote the log of a schedule; only such a log needs them.
        which: name of the list, for a file that has several.

    Raises:
        UsageError: an unknown name, a number out of range, a log without `epochs`, or several lists without `which`.
        InputError: the file is missing, or is no such policy.
    """
    family, _, dataset = name.partition("-")
    if family == "autoaugment" and dataset in AUTOAUGMENT:
        return _autoaugment(dataset)
    if match := _RANDAUGMENT.fullmatch(name):
        return _randaugment(int(match[1]), int(match[2]))
    if name in pba.NAMES:
        return _scheduled(pba.published(name), name)
    if name.startswith(("autoaugment", "randaugment", "pba-")) and not Path(name).exists():
        known = ", ".join((*(f"autoaugment-{dataset}" for dataset in AUTOAUGMENT), *pba.NAMES))
        raise UsageError(name, "is not a policy that is known", f"name {known}, randaugment:N,M or a file")
    return _from_file(Path(name), drop_unknown, epochs, which)


def _made(
    what: str,
    sub_policies: Iterable[Sequence[Step]],
    lost: Sequence[str] = (),
    source: str = "",
    note: str = "",
    stages: Sequence[Stage] = (),
) -> DatasetPolicy:
    from ..runtime.machine import versions  # imports torch: what is wrong with a policy is said before

    parts = [tuple(steps) for steps in sub_policies]
    if not stages and not any(parts):
        raise invalid_bundle(source, "no operation of it has a counterpart", "name a policy with some of AutoAugment's")
    if (more := len(lost) - MAX_LOST + 1) > 1:
        lost = [*lost[: MAX_LOST - 1], f"{more} more operations: no counterpart"]
    held = {"stages": tuple(stages)} if stages else {}
    return DatasetPolicy.make(
        versions=versions(), source=what, sub_policies=parts, lost=tuple(lost), licence="", note=note, **held
    )


def can_be_imported(name: str) -> bool:
    """Whether `import_policy` knows the name, or it is a file's."""
    known = name in pba.NAMES or name in {f"autoaugment-{dataset}" for dataset in AUTOAUGMENT}
    return known or _RANDAUGMENT.fullmatch(name) is not None or Path(name).is_file()


def _scheduled(stages: Sequence[Stage], name: str) -> DatasetPolicy:
    return _made(f"Population Based Augmentation, {name}", [], pba.lost(stages), stages=stages)


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


def _from_file(path: Path, drop_unknown: bool, epochs: int | None, which: str | None) -> DatasetPolicy:
    content = read_regular_file(path, LARGEST_LIST)
    source = str(path)
    if pba.is_log(content):
        return _scheduled(pba.stages_of_log(content, source, epochs), "log of a search")
    if content.lstrip()[:1] == b"{":
        return _from_document(_document(content, source), source, drop_unknown, which)
    if _ASSIGNED.match(plain := _without_comments(content)):
        return _from_named(_assigned(plain, source), source, drop_unknown, which)
    found = _parsed(content, source)
    if pba.is_schedule(found):
        return _scheduled(pba.stages_of_list(found, source), "schedule of a file")
    return _from_list(found, source, drop_unknown)


def _document(content: bytes, source: str) -> dict[str, Any]:
    """A JSON object; AutoAlbument's are deep, those of the others wide."""
    deep = autoalbument.DEPTH, autoalbument.KEYS, autoalbument.ENTRIES
    wide = faster_autoaugment.DEPTH, faster_autoaugment.KEYS, faster_autoaugment.ENTRIES
    try:
        found: dict[str, Any] = canonical_json.parse(content, *(deep if b'"transform"' in content else wide))
    except ValueError as problem:
        raise invalid_bundle(source, str(problem), autoalbument.REMEDY) from None
    return found


def _from_document(document: dict[str, Any], source: str, drop_unknown: bool, which: str | None) -> DatasetPolicy:
    if faster_autoaugment.is_state(document):
        sub_policies, shares = faster_autoaugment.sequences(document, source)
        pixels = faster_autoaugment.ABOUT_PIXELS
        return _with_shares("Faster AutoAugment's policy", sub_policies, shares, pixels, source, drop_unknown)
    if document and "transform" not in document and all(isinstance(each, list) for each in document.values()):
        return _from_named(document, source, drop_unknown, which)
    sub_policies, shares = autoalbument.sequences(document, source)
    about = autoalbument.ABOUT_PIXELS
    return _with_shares("AutoAlbument's policy", sub_policies, shares, about, source, drop_unknown)


def _with_shares(
    what: str,
    sub_policies: Iterable[Sequence[Step]],
    shares: dict[str, float],
    about: Sequence[str],
    source: str,
    drop_unknown: bool,
) -> DatasetPolicy:
    """A policy without the operations that `shares` names, if the user agrees."""
    names = sorted(shares, key=lambda name: (-shares[name], name))
    total = f"{sum(shares.values()):.1%} of all draws"
    if shares and not drop_unknown:
        why = f"has operations without counterpart here, {total}: {', '.join(names)}"
        raise invalid_bundle(source, why, "add --drop-unknown to leave them out")
    lost = [f"{name}: no counterpart, {shares[name]:.2%} of all draws" for name in names]
    note = f"Without {', '.join(names)}: {total}." if names else ""
    return _made(what, sub_policies, [*about, *lost], source, note[:4000])


def _without_comments(content: bytes) -> bytes:
    """A Python file without its lines of comment."""
    return b"\n".join(line for line in content.splitlines() if not line.lstrip().startswith(b"#")).lstrip()


def _assigned(text: bytes, source: str) -> dict[str, Any]:
    """The lists of a Python file of assignments such as DADA's genotype.py, `A = B = [...]`, by their first names."""
    starts = [found.start() for found in _ASSIGNED.finditer(text)]
    if len(starts) > _MOST_LISTS:
        raise invalid_bundle(source, f"has {len(starts)} lists, more than the {_MOST_LISTS} allowed", "cut one out")
    lists: dict[str, Any] = {}
    for start, end in itertools.pairwise([*starts, len(text)]):
        *names, value = text[start:end].split(b"=")
        lists[names[0].strip().decode("ascii")] = _parsed(value, source)
    return lists


def _from_named(lists: dict[str, Any], source: str, drop_unknown: bool, which: str | None) -> DatasetPolicy:
    known = ", ".join(quoted(name) for name in lists)
    if which is None and len(lists) > 1:
        raise UsageError(ascii(source)[-60:].strip("'"), f"has the lists {known}"[:120], "add --list NAME")
    if which is not None and which not in lists:
        raise UsageError("--list", f"{quoted(which)} is not one of {known}"[:160], "name one of them")
    name = which or next(iter(lists))
    if pba.is_schedule(lists[name]):
        raise invalid_bundle(source, f"{quoted(name)} is not a list of sub-policies", f"expected {LIST_FORM}")
    made, chances = _sub_policies(lists[name], source)
    shares = _shares(made, chances)
    cutout = [f"Cutout: no counterpart, {shares.pop('Cutout'):.2%} of all draws"] if "Cutout" in shares else []
    return _with_shares(f"list {_plain(name)} of {len(made)} sub-policies", made, shares, cutout, source, drop_unknown)


def _plain(name: str) -> str:
    """A list's name for the bundle, which takes printable text of some length."""
    return name[:80] if name.isascii() and name.isprintable() else "of a file"


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
        return canonical_json.parse(text, 4, 0, 1 + MAX_SUB_POLICIES * (1 + MAX_STEPS))
    except ValueError as problem:
        raise invalid_bundle(source, str(problem), remedy) from None


def _from_list(found: Any, source: str, drop_unknown: bool) -> DatasetPolicy:
    lost: Counter[str] = Counter()
    made, chances = _sub_policies(found, source, lost)
    cutout = [f"Cutout in {lost['Cutout']} steps: no counterpart"] if lost["Cutout"] else []
    shares = _shares(made, chances)
    shares.pop("Cutout", None)
    return _with_shares(f"list of {len(made)} sub-policies", made, shares, cutout, source, drop_unknown)


def _shares(sub_policies: Sequence[Sequence[Step]], chances: Mapping[str, float]) -> dict[str, float]:
    """Each operation without a counterpart with its share of all draws."""
    whole = sum(chances.values()) + sum(step.probability for steps in sub_policies for step in steps)
    return {operation: chance / whole for operation, chance in chances.items() if chance}


def _sub_policies(
    found: Any, source: str, lost: Counter[str] | None = None
) -> tuple[list[list[Step]], dict[str, float]]:
    """The steps of a list's sub-policies, and the sum of the probabilities of each operation without a counterpart.

    Args:
        found: the parsed list.
        source: its name, for the error.
        lost: also counts the steps without a counterpart.
    """
    remedy = f"expected {LIST_FORM}"
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_SUB_POLICIES:
        raise invalid_bundle(source, f"is {quoted(found)}, expected 1 to {MAX_SUB_POLICIES} sub-policies", remedy)
    chances: dict[str, float] = {}
    sub_policies: list[list[Step]] = []
    for position, steps in enumerate(found):
        if not isinstance(steps, list) or len(steps) > MAX_STEPS:
            why = f"sub-policy {position} is {quoted(steps)}, expected at most {MAX_STEPS} steps"
            raise invalid_bundle(source, why, remedy)
        sub_policies.append([])
        for number, step in enumerate(steps):
            converted = _fast_autoaugment_step(step, f"sub-policy {position} step {number}", source)
            if isinstance(converted, Step):
                sub_policies[-1].append(converted)
                continue
            chances[converted] = chances.get(converted, 0.0) + step[1]
            if lost is not None:
                lost[converted] += 1
    return sub_policies, chances


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
