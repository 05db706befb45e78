"""Text from untrusted files and servers, made safe for a terminal, a page and a one-line error."""

from typing import Any

from ..errors import InputError

NEW_COPY = "ask its sender for a good copy"

_LONGEST_ERROR = 240 - len("mapolicy: error: ")
_LONGEST_SOURCE = 64
_LONGEST_VALUE = 48


def invalid_bundle(source: str, why: str, remedy: str = NEW_COPY) -> InputError:
    """The error for a file that is rejected: one line of printable ASCII, at most 240 characters.

    Args:
        source: the file's name as the user gave it. Only the end of a long name is kept.
        why: field, what was found, what was expected; text from the file in it through `quoted` or `escaped`. It is cut
            where it is too long.
        remedy: what to do.
    """
    name = ascii(source)[1:-1]
    if len(name) > _LONGEST_SOURCE:
        name = f"...{name[3 - _LONGEST_SOURCE :]}"
    room = _LONGEST_ERROR - len(f"{name}: ; {remedy}")
    text = why if why.isascii() and why.isprintable() else ascii(why)[1:-1]
    return InputError(name, text if len(text) <= room else f"{text[: room - 3]}...", remedy)


def printable(text: object) -> str:
    """The text, any script kept, with each character that does not print replaced by `?`.

    Control and format characters would move the cursor of a terminal, forge lines or turn the direction of writing.
    """
    return "".join(character if character.isprintable() else "?" for character in str(text))


def quoted(value: Any, longest: int = _LONGEST_VALUE) -> str:
    """A value for an error message as Python writes it: a text in quotes, a list or table as its size.

    Printable ASCII of at most `longest` characters, shortened in the middle.
    """
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return _shortened(ascii(_without_middle(value, longest) if isinstance(value, str) else value), longest)


def escaped(text: str, longest: int = _LONGEST_VALUE) -> str:
    """A text for an error message without quotes: printable ASCII of at most `longest` characters, as in `quoted`."""
    return _shortened(ascii(_without_middle(text, longest))[1:-1], longest)


def _without_middle(text: str, longest: int) -> str:
    """A text whose middle is not shown anyway: escaping a megabyte would make it ten."""
    return text[:longest] + text[-longest:] if len(text) > 2 * longest else text


def _shortened(text: str, longest: int) -> str:
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"
