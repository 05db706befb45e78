"""Types of settings that pydantic does not have: one of several names, a text by a pattern, and a table of TOML."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler

from ..runtime.plugins import OR_REGISTER


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The type of a setting that takes one of several names: `Annotated[str, OneOf(names)]`.

    Attributes:
        names: the names, or a function that gives them. The function is called for each check, so a name that is
            registered later is valid too.
    """

    names: Collection[str] | Callable[[], Collection[str]]

    def listed(self) -> list[str]:
        """The names that are valid now."""
        return list(self.names() if callable(self.names) else self.names)

    def check(self, value: str) -> str:
        """Return the value.

        Raises:
            ValueError: it is none of the names.
        """
        if value not in self.listed():
            # Tuples hold names that nothing can be added to.
            known = [name.lower() for name in self.listed()]
            foreign = not isinstance(self.names, tuple) and not difflib.get_close_matches(value.lower(), known)
            raise ValueError(
                f"{value!r} is not one of {', '.join(self.listed())}",
                *([f"use one of them, {OR_REGISTER}"] if foreign else []),
            )
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(Annotated[str, AfterValidator(self.check)])

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": self.listed()}


@dataclasses.dataclass(frozen=True)
class Matching:
    """The type of a setting whose text matches a pattern: `Annotated[str, Matching("a|b", "a or b")]`.

    Attributes:
        pattern: a regular expression for the whole text.
        meaning: the texts that match, for an error.
    """

    pattern: str
    meaning: str

    def check(self, value: str) -> str:
        """Return the value.

        Raises:
            ValueError: it does not match.
        """
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"{value!r} is not {self.meaning}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(Annotated[str, AfterValidator(self.check)])

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}


def _toml_table(value: object) -> object:
    if isinstance(value, dict) and not _is_toml(value):
        raise ValueError(f"{value!r} cannot be written as TOML", "give numbers, texts, lists and tables")
    return value


def _is_toml(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_toml(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_toml, value))
    return isinstance(value, str | bool | int | float)


Table = Annotated[dict[str, Any], BeforeValidator(_toml_table)]
