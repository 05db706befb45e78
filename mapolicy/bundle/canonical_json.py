"""Canonical JSON: equal values give equal bytes, and the reader rejects whatever parsers read in different ways."""

import json
from collections import Counter
from functools import partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..runtime.sanitize import quoted

_STEP = np.zeros(256, dtype=np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1
_ENTRIES = np.isin(np.arange(256), list(b"[{:"))


def canonical(value: Any) -> str:
    """JSON in ASCII with sorted keys and no spaces; ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class TooLargeError(ValueError):
    """More lists, tables and keys than are allowed.

    Attributes:
        found: their number.
    """

    def __init__(self, found: int, allowed: int) -> None:
        super().__init__(f"has {found} lists, tables and keys, more than the {allowed} allowed")
        self.found = found


def parse(text: bytes, deepest: int, widest: int, most: int) -> Any:
    """JSON without duplicate keys, NaN or infinities.

    Args:
        text: UTF-8.
        deepest: levels of nesting.
        widest: keys of a table.
        most: lists, tables and keys in total.

    Raises:
        TooLargeError: more than `most`.
        ValueError: anything else that is wrong; its message is printable ASCII.
    """
    # Checked before parsing: the parser's depth limit depends on the caller's stack, and an empty list takes two bytes
    # of the file but 64 of memory.
    outside = _outside_strings(text)
    if int(np.cumsum(_STEP[outside], dtype=np.int32).max(initial=0)) > deepest:
        raise ValueError(f"is JSON nested deeper than {deepest} levels")
    if (found := int(_ENTRIES[outside].sum())) > most:
        raise TooLargeError(found, most)
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    try:
        return json.loads(decoded, object_pairs_hook=partial(_table, widest), parse_constant=_reject_constant)
    except json.JSONDecodeError as problem:
        raise ValueError(f"is not JSON (at character {problem.pos})") from None
    except (_NotStrictError, TooLargeError):
        raise
    except ValueError:  # Python's own limit on the digits of an integer
        raise ValueError("has a number with too many digits") from None


def _outside_strings(text: bytes) -> npt.NDArray[np.uint8]:
    """The characters of a JSON text that are not inside a string."""
    # Once escaped backslashes and then escaped quotes are removed, each quote begins or ends a string.
    plain = np.frombuffer(text.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    return plain[~np.logical_xor.accumulate(plain == ord('"'))]


class _NotStrictError(ValueError):
    """Valid JSON that this strict reader rejects."""


def _table(widest: int, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The check that follows visits every key: for 300,000 of them pydantic takes 6 s.
    if len(pairs) > widest:
        raise _NotStrictError(f"has a table of {len(pairs)} keys, more than the {widest} allowed")
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _NotStrictError(f"has the key {quoted(twice)} twice")
    return found


def _reject_constant(name: str) -> NoReturn:
    raise _NotStrictError(f"has the number {name}")
