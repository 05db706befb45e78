"""Types of the manifest's fields: bounded printable texts, bounded finite numbers, allow-listed arguments."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, FailFast, Field, GetJsonSchemaHandler, Strict

from ..config.choices import ALPHA_BACKGROUND, LARGEST_VALUE
from ..runtime.sanitize import quoted

MAX_COUNT = 2**40
MAX_CLASSES = 100_000

# Arguments that a bundle may pass to a network's constructor: (type, least, most). None names a file, an address or
# code.
MODEL_ARGS: Mapping[str, tuple[type, float, float]] = {
    "img_size": (int, 1, 4096),
    "patch_size": (int, 1, 256),
    "window_size": (int, 1, 256),
    "depth": (int, 1, 200),
    "embed_dim": (int, 1, 4096),
    "num_heads": (int, 1, 256),
    "output_stride": (int, 1, 64),
    "stem_width": (int, 1, 1024),
    "stem_stride": (int, 1, 8),
    "drop_rate": (float, 0.0, 1.0),
    "drop_path_rate": (float, 0.0, 1.0),
    "attn_drop_rate": (float, 0.0, 1.0),
    "proj_drop_rate": (float, 0.0, 1.0),
}


# End of a JSON Schema pattern: in Python "$" would also match before a final line break.
_END = r"(?![\s\S])"
# Unprintable characters, as far as every regex dialect of JSON Schema can name them: controls, formats, separators
# except the space. The reader itself checks `str.isprintable`.
_UNPRINTABLE = r"\u007f-\u00a0\u00ad\u061c\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb"
_PRINTABLE = rf"^[^\u0000-\u001f{_UNPRINTABLE}]*{_END}"
_PRINTABLE_LINES = rf"^[^\u0000-\u0009\u000b-\u001f{_UNPRINTABLE}]*{_END}"


@dataclass(frozen=True, eq=False)
class Rule(AfterValidator):
    """A pydantic check of a field's value together with its JSON Schema.

    Attributes:
        func: returns the value, or raises a ValueError that says what was expected.
        schema: keywords of JSON Schema; they may check less than `func` does.
    """

    schema: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | dict(self.schema)


def check_model_args(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, if a bundle may pass each of them to a network's constructor (`MODEL_ARGS`).

    Raises:
        ValueError: an argument is unknown, of another type or out of range.
    """
    for name, value in arguments.items():
        if name not in MODEL_ARGS:
            raise ValueError(f"argument {quoted(name)} is not one that a bundle may give (manifest_fields.MODEL_ARGS)")
        kind, least, most = MODEL_ARGS[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or not least <= value <= most:
            raise ValueError(f"argument {name} is {quoted(value)}, expected {kind.__name__} between {least} and {most}")
    return dict(arguments)


def one_of(choices: tuple[Any, ...]) -> Rule:
    """The rule that the value is one of these."""

    def check(value: Any) -> Any:
        if value not in choices:
            raise ValueError(" or ".join(str(choice) for choice in choices))
        return value

    return Rule(check, {"const": choices[0]} if len(choices) == 1 else {"enum": list(choices)})


def _printable(text: str) -> str:
    """Text whose characters all print; others could forge lines, colours or the direction of writing."""
    if not text.isprintable():
        bad = next(character for character in text if not character.isprintable())
        raise ValueError(f"printable text without {bad!a}")
    return text


def _printable_lines(text: str) -> str:
    return "\n".join(_printable(line) for line in text.split("\n"))


def _matching(pattern: str, meaning: str) -> Rule:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(meaning)
        return text

    return Rule(check, {"pattern": rf"^(?:{pattern}){_END}"})


def check_setting(value: Any) -> Any:
    """A setting of a search: a scalar, or a table of a network's arguments.

    Raises:
        ValueError: it is neither, not finite, or too long.
    """
    if isinstance(value, dict):
        return check_model_args(value)
    if type(value) is bool or (type(value) is int and abs(value) <= 2**63):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is str and len(value) <= 200:
        return _printable(value)
    raise ValueError("true, false, a finite number or a text of at most 200 characters")


def _count_or_fraction(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("a whole number, or a fraction below 1")
    return value


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values[0] < values[1]:
        raise ValueError("two numbers, the lower one first")
    return values


def _without_repeats(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        ((twice, _),) = Counter(names).most_common(1)
        raise ValueError(f"each name once ({quoted(twice)} is there again)")
    return names


_MODEL_ARGS_SCHEMA = {
    "type": "object",
    "properties": {
        name: {"type": "integer" if kind is int else "number", "minimum": least, "maximum": most}
        for name, (kind, least, most) in MODEL_ARGS.items()
    },
    "additionalProperties": False,
}
_SETTING_SCHEMA = {
    "anyOf": [
        {"type": ["boolean", "number"]},
        {"type": "string", "maxLength": 200, "pattern": _PRINTABLE},
        _MODEL_ARGS_SCHEMA,
    ]
}

Text = Annotated[str, Field(min_length=1, max_length=200), Rule(_printable, {"pattern": _PRINTABLE})]
OptionalText = Annotated[str, Field(max_length=200), Rule(_printable, {"pattern": _PRINTABLE})]
Note = Annotated[str, Field(max_length=4000), Rule(_printable_lines, {"pattern": _PRINTABLE_LINES})]
ModelArgs = Annotated[dict[str, Any], Rule(check_model_args, _MODEL_ARGS_SCHEMA)]
Setting = Annotated[Any, Rule(check_setting, _SETTING_SCHEMA)]
Identifier = Annotated[str, Field(max_length=80), _matching(r"[a-z][a-z0-9_]*", "lower-case letters, digits and _")]
PolicyName = Annotated[
    str, Field(max_length=80), _matching(r"[a-z][a-z0-9_-]*", "lower-case letters, digits, _ and -, a letter first")
]
# A name with a scheme, a path or a dot could make timm download or open files; no name in its registry has one.
Arch = Annotated[
    str, Field(max_length=80), _matching(r"[a-z][a-z0-9_]*", "a timm name: lower-case letters, digits and _")
]
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
# A folder is called as people call folders, but no separator, and no start that a shell or a path has a meaning for.
_NOT_IN_FOLDER = rf"\u0000-\u001f{_UNPRINTABLE}/\\"
_FOLDER = rf"folder:[^.~{_NOT_IN_FOLDER}][^{_NOT_IN_FOLDER}]*"
DatasetName = Annotated[
    str,
    Field(max_length=200),
    _matching(rf"{_FOLDER}|{_SEGMENT}(/{_SEGMENT}){{0,3}}", "a data set's name, not a path"),
    AfterValidator(_printable),
]
Digest = Annotated[str, Field(max_length=64), _matching(r"[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
PerClass = Annotated[
    float,
    Field(ge=0, le=MAX_COUNT),
    Rule(_count_or_fraction, {"anyOf": [{"type": "integer"}, {"exclusiveMaximum": 1}]}),
]
Colour = Annotated[str, Field(max_length=7), _matching(ALPHA_BACKGROUND, "white, black or #rrggbb")]
ValueRange = Annotated[
    tuple[Annotated[float, Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE)], ...],
    Field(min_length=2, max_length=2, strict=False),
    AfterValidator(_ascending),
]
Parameter = Annotated[float, Field(ge=-1e6, le=1e6)]
# Not strict, because JSON has lists and no tuples; their items stay strict. FailFast: collecting a million errors takes
# seconds.
ManyClasses = Annotated[
    tuple[Text, ...],
    Field(min_length=2, max_length=MAX_CLASSES),
    Strict(False),
    FailFast(),
    Rule(_without_repeats, {"uniqueItems": True}),
]
Means = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1, max_length=3, strict=False), FailFast()
]
Deviations = Annotated[
    tuple[Annotated[float, Field(ge=1e-4, le=1e4)], ...], Field(min_length=1, max_length=3, strict=False), FailFast()
]
