"""What a person reads where a setting is missing, unknown or wrong: what was given, and what to type instead."""

import difflib
import sys
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..errors import UsageError

LISTED = 120  # characters of the names of missing settings in an error, whose line has 240

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "a table",
}
_FIRST = ("unexpected_keyword_argument", "missing")  # a misspelled name also leaves one missing


def setting_error(kind: str, stage: str, settings: Mapping[str, FieldInfo], problem: ValidationError) -> UsageError:
    """The error of the first setting that pydantic rejects, with what to type; of all settings that are missing.

    Args:
        kind: name of the configuration's class.
        stage: search or train.
        settings: every setting of the configuration by name.
        problem: what pydantic found.
    """
    errors = problem.errors(include_url=False)
    error = min(errors, key=lambda each: _FIRST.index(each["type"]) if each["type"] in _FIRST else len(_FIRST))
    name = str(error["loc"][0])
    if name not in settings:
        close = difflib.get_close_matches(name, settings, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"{stage} has no such setting"
        return UsageError(kind, f"unknown setting {name!r}", remedy)
    meaning = f"it means: {settings[name].description}"
    match error["type"]:
        case "missing":
            missing = [str(each["loc"][0]) for each in errors if each["type"] == "missing"]
            if len(missing) == 1:
                return UsageError(kind, f"setting {name!r} is missing", meaning)
            shown = [name for position, name in enumerate(missing) if len(", ".join(missing[: position + 1])) <= LISTED]
            rest = f" and {len(missing) - len(shown)} more" if len(shown) < len(missing) else ""
            why = f"{len(missing)} settings are missing: {', '.join(shown)}{rest}"
            return UsageError(kind, why, "a recipe has them, `mapolicy recipes` lists the recipes")
        case "value_error":
            why, *remedies = error["ctx"]["error"].args
            return UsageError(name, why, *remedies)
        case other if other in _KINDS and not _is_huge(error["input"]):
            return UsageError(name, f"{error['input']!r} is not {_KINDS[other]}", meaning)
        case _:
            return UsageError(
                name, f"{_number(error['input'])} is not a finite number {_range(settings[name])}", meaning
            )


def _range(setting: FieldInfo) -> str:
    ends = {end: getattr(limit, end) for limit in setting.metadata for end in ("ge", "le") if hasattr(limit, end)}
    return f"between {ends['ge']} and {ends['le']}" if "le" in ends else f"at least {ends['ge']}"


def _number(value: object) -> str:
    return "a number this large" if _is_huge(value) else str(value)


def _is_huge(value: object) -> bool:
    """Whether it is a whole number beyond the range of floats; it may be too long to print."""
    return type(value) is int and value.bit_length() > sys.float_info.max_exp
