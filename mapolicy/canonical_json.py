"""JSON with one spelling: written so that equal values give equal bytes, read so that nothing is ambiguous."""

import json
import re
from functools import partial
from typing import Any, NoReturn

import numpy as np

from .refusal import shown

# A string, or one that the end of the text cuts off: the pattern always matches, so that it runs in linear time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = np.zeros(256, dtype=np.int32)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def canonical(value: Any) -> str:
    """ASCII, sorted keys, no spaces. NaN and infinities are a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def parse(text: bytes, deepest: int, widest: int) -> Any:
    """JSON without duplicate keys, NaN or infinities, nested at most `deepest` levels, tables of at most `widest` keys.

    Raises:
        ValueError: what is wrong, as printable ASCII.
    """
    # The depth is known before the parser recurses: its own limit depends on the caller's stack.
    brackets = np.frombuffer(_STRING.sub(b"", text).translate(None, _NOT_BRACKETS), dtype=np.uint8)
    if brackets.size and int(np.cumsum(_STEP[brackets]).max()) > deepest:
        raise ValueError(f"is JSON nested deeper than {deepest} levels")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    try:
        return json.loads(decoded, object_pairs_hook=partial(_table, widest), parse_constant=_refuse_constant)
    except json.JSONDecodeError as problem:
        raise ValueError(f"is not JSON (at character {problem.pos})") from None
    except _NotStrictError as problem:
        raise ValueError(str(problem)) from None
    except ValueError:  # Python's own limit on the digits of an integer
        raise ValueError("has a number with too many digits") from None


class _NotStrictError(ValueError):
    """JSON, but not of the strict kind."""


def _table(widest: int, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Whoever checks the table looks at every key: 300,000 of them keep pydantic busy for 6 s.
    if len(pairs) > widest:
        raise _NotStrictError(f"has a table of {len(pairs)} keys, more than the {widest} allowed")
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _NotStrictError(f"has the key {shown(twice)} twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _NotStrictError(f"has the number {name}")
