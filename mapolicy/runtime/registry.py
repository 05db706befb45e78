"""A table of named entries that code outside the package can add to.

    OPENERS: Registry[Opener] = Registry("data set")

    @OPENERS.register("blobs", "two clouds of dots, drawn from a seed")
    def open_blobs(request): ...

    OPENERS["blobs"]

An entry's object may be given as text, `package.module:name`. It is then imported at its first use, so the table can
be listed without importing what it names.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from ..errors import UsageError
from .plugins import OR_REGISTER
from .sanitize import quoted

T = TypeVar("T")
Registered = TypeVar("Registered")

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One line of a registry.

    Attributes:
        name: what users type.
        description: what it is, on one line.
        target: the object, or where it is: `package.module:name`.
        built_in: whether the package itself brings it.
    """

    name: str
    description: str
    target: T | str
    built_in: bool = False

    def load(self) -> T:
        """The object; imports its module where the target is a text."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        return cast(T, getattr(import_module(module), attribute))


class Registry(Mapping[str, T], Generic[T]):
    """The objects by name, in the order in which they were added.

    Args:
        kind: what an entry is, for error messages: "policy".
        built_in: the package's own entries: name, description, target.
        reserved: names that no entry may take.
        pattern: regular expression that a name must match as a whole.
    """

    def __init__(
        self,
        kind: str,
        built_in: Collection[tuple[str, str, T | str]] = (),
        reserved: Collection[str] = (),
        pattern: str = NAME,
    ) -> None:
        self.kind, self._reserved, self._pattern = kind, frozenset(reserved), pattern
        self._entries: dict[str, Entry[T]] = {}
        for name, description, target in built_in:
            self.add(name, description, target, built_in=True)

    def add(self, name: str, description: str, target: T | str, built_in: bool = False) -> None:
        """Add an entry; arguments as the attributes of `Entry`.

        Raises:
            ValueError: the name is taken or not allowed, or the description is not one line of text.
        """
        if name in self._entries or name in self._reserved:
            raise ValueError(f"{self.kind} {name!r} exists already; choose another name")
        if not re.fullmatch(self._pattern, name):
            raise ValueError(f"{self.kind} {name!r} is not a name that matches {self._pattern}")
        if not description or not description.isprintable():
            raise ValueError(f"{self.kind} {name!r} needs a description on one line")
        self._entries[name] = Entry(name, description, target, built_in)

    def register(self, name: str, description: str) -> Callable[[Registered], Registered]:
        """A decorator that adds the function or class below it and returns it unchanged.

        Raises:
            ValueError: as `add`.
        """

        def decorate(target: Registered) -> Registered:
            self.add(name, description, cast(Any, target))
            return target

        return decorate

    def remove(self, name: str) -> None:
        """Remove an entry that was added from outside, for example before a notebook's cell runs again.

        Raises:
            ValueError: the entry is built in.
            UsageError: there is no such entry.
        """
        if self.entry(name).built_in:
            raise ValueError(f"{self.kind} {name!r} is built in")
        del self._entries[name]

    def entry(self, name: str) -> Entry[T]:
        """The entry of this name; its object is not imported.

        Raises:
            UsageError: there is none; the error suggests similar names.
        """
        if name not in self._entries:
            raise UsageError(self.kind, f"there is none called {quoted(name)}", self.suggestion(name))
        return self._entries[name]

    def find(self, name: str) -> T:
        """The object of this name, imported where it was not yet.

        Raises:
            UsageError: as `entry`. `registry[name]` raises KeyError instead.
        """
        return self.entry(name).load()

    def entries(self) -> tuple[Entry[T], ...]:
        """All entries, in order."""
        return tuple(self._entries.values())

    def suggestion(self, name: str) -> str:
        """What to type instead of a name that is not in the table."""
        known = {each.lower(): each for each in self._entries}
        found = [known[each] for each in difflib.get_close_matches(name.lower(), known, n=2)]
        if found:
            return f"did you mean {' or '.join(found)}?"
        return f"use one of {', '.join(self._entries)}, {OR_REGISTER}"

    def __getitem__(self, name: str) -> T:
        return self._entries[name].load()

    def __contains__(self, name: object) -> bool:  # Mapping's own would import the object
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
