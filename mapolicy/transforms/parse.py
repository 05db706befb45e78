"""Transformations as text: `Rotate:5,Color:-3; Equalize`. What is read here is also what is written."""

import difflib

import torch

from ..errors import UsageError
from .space import DEFAULT_SPACE, MAX_LEVEL, OperationSpace, resolve_space
from .transformation import Transformation

FORM = "write FIRST:LEVEL,SECOND:LEVEL; ... with levels of -10 to 10, as in Rotate:5,Color:-3"
MOST = 10_000  # transformations in one text


def parse_transformations(text: str, space: str | OperationSpace = DEFAULT_SPACE) -> Transformation:
    """The transformations of a text, one after another, on the CPU.

    Args:
        text: transformations separated by `;`, each of one or two operations separated by `,` (the second is Identity
            where there is none), each with its magnitude behind a `:`: the level, whose sign is the direction.
            Operations without a magnitude have none.
        space: that the operations are looked up in.

    Raises:
        UsageError: no transformation, an unknown operation, or a magnitude that it cannot have.
    """
    space, pairs = resolve_space(space), []
    for part in filter(None, map(str.strip, text.split(";"))):
        steps = [_step(step.strip(), space) for step in part.split(",")]
        if len(steps) > 2:
            raise UsageError("transformations", f"{part[:60]!r} has more than two operations", FORM)
        pairs.append([*steps, (space.names.index("Identity"), 0.0)][:2])
    if not 0 < len(pairs) <= MOST:
        raise UsageError("transformations", f"there are {len(pairs)}, expected 1 to {MOST}", FORM)
    index = torch.tensor([[operation for operation, _ in pair] for pair in pairs])
    magnitude = torch.tensor([[level for _, level in pair] for pair in pairs], dtype=torch.float32)
    first, second = index.unbind(1)
    magnitude1, magnitude2 = magnitude.unbind(1)
    return Transformation(first, second, magnitude1, magnitude2, space)


def spelled(transformation: Transformation, digits: int = 1) -> list[str]:
    """Each transformation as `parse_transformations` reads it, magnitudes rounded to so many decimals."""
    columns = (transformation.first, transformation.magnitude1, transformation.second, transformation.magnitude2)
    space = transformation.space

    def step(operation: int, magnitude: float) -> str:
        return space.names[operation] + (f":{magnitude:.{digits}f}" if space.has_magnitude[operation] else "")

    return [
        f"{step(first, level1)}, {step(second, level2)}"
        for first, level1, second, level2 in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _step(text: str, space: OperationSpace) -> tuple[int, float]:
    name, colon, level = (part.strip() for part in text.partition(":"))
    known = {each.lower(): position for position, each in enumerate(space.names)}
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
        names = " or ".join(space.names[known[each]] for each in close)
        remedy = f"did you mean {names}?" if names else "`mapolicy operations` lists them"
        raise UsageError("transformations", f"there is no operation {name[:40]!r}", remedy)
    operation = known[name.lower()]
    if not space.has_magnitude[operation]:
        if colon:
            raise UsageError("transformations", f"{space.names[operation]} has no magnitude", "leave it out")
        return operation, 0.0
    try:
        magnitude = float(level)
    except ValueError:
        magnitude = MAX_LEVEL + 1
    if not abs(magnitude) <= MAX_LEVEL:
        raise UsageError("transformations", f"{text[:60]!r} has no level of -10 to 10", FORM)
    return operation, magnitude
