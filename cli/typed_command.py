"""The command that the user typed, completed: what an error says to type."""

import shlex
import sys
from collections.abc import Sequence


def completed(*, dataset: str | None = None, words: Sequence[str] = ()) -> str:
    """The command as it was typed, with a data set as its first word, and with further words at its end."""
    first = [] if dataset is None else [dataset]
    return shlex.join(["mapolicy", *sys.argv[1:2], *first, *sys.argv[2:], *words])
