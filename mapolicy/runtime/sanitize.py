"""How an untrusted file is refused: one line of printable ASCII that an error's form has room for."""

from typing import Any

from ..errors import InputError

NEW_COPY = "ask its sender for a good copy"

_LONGEST_ERROR = 240 - len("mapolicy: error: ")
_LONGEST_SOURCE = 64
_LONGEST_SHOWN = 48


def refused(source: str, why: str, remedy: str = NEW_COPY) -> InputError:
    """The error to raise.

    Args:
        source: the file's name, as the user gave it; of a long one the end is kept.
        why: field, what was found, what was expected; foreign data in it through `shown`. Cut where it is too long.
        remedy: what to do.
    """
    name = ascii(source)[1:-1]
    if len(name) > _LONGEST_SOURCE:
        name = f"...{name[3 - _LONGEST_SOURCE :]}"
    room = _LONGEST_ERROR - len(f"{name}: ; {remedy}")
    text = ascii(why)[1:-1] if not (why.isascii() and why.isprintable()) else why
    return InputError(name, text if len(text) <= room else f"{text[: room - 3]}...", remedy)


def printable(text: str) -> str:
    """Foreign text on one line, as a terminal or a page may have it: what is not printable becomes `?`."""
    return "".join(character if character.isprintable() else "?" for character in text)


def shown(value: Any, longest: int = _LONGEST_SHOWN) -> str:
    """Foreign data for an error: printable ASCII, shortened in the middle; of a list or table its size."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    # Cut before escaping: a text of a megabyte escapes to ten.
    cut = isinstance(value, str) and len(value) > longest
    text = ascii(value[:longest] + value[-longest:] if cut else value)
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]}...{text[-half:]}"
