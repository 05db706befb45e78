"""A package's public names, each imported from its module at first use (PEP 562).

`mapolicy --help` and `mapolicy inspect` stay fast because importing a package does not import torch.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`, which import a module when one of its names is first used.

    Args:
        package: the package's `__name__`.
        homes: for each public name, the module of the package that defines it.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{homes[name]}", package), name)

    return find, lambda: sorted(homes)
