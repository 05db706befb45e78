"""Modules outside the package that register operations, policies, data sets and more, imported when a command starts.

A package names such a module as an entry point of the group `mapolicy.plugins`. A user names further ones, separated
by commas, in the environment variable MAPOLICY_PLUGINS. Nothing else is imported: no bundle, recipe or data set can
name a module.
"""

import os
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points

from ..errors import EnvironmentFault

GROUP, VARIABLE = "mapolicy.plugins", "MAPOLICY_PLUGINS"

# What to do where a name is not registered.
HOW_TO_REGISTER = f"install or import what registers it, or name its module in {VARIABLE}"
OR_REGISTER = f"or name its plugin in {VARIABLE}"  # behind a list of names

_loaded: list[str] = []


def load_plugins() -> None:
    """Import every plugin that is installed or named in the environment, once.

    Raises:
        EnvironmentFault: a plugin cannot be imported; one line says which and why.
    """
    for point in entry_points(group=GROUP):
        remedy = f"mend or uninstall {point.dist.name if point.dist else 'the package that names it'}"
        _load(point.value, point.load, remedy)
    named = os.environ.get(VARIABLE, "").split(",")
    import_plugins([name.strip() for name in named if name.strip()])


def import_plugins(modules: Iterable[str]) -> None:
    """Import plugins by the name of their module; what was imported before stays as it is.

    Raises:
        EnvironmentFault: as `load_plugins`.
    """
    for module in modules:
        remedy = f"mend it or take it out of {VARIABLE}"
        _load(module, partial(import_module, module), remedy)


def loaded_plugins() -> tuple[str, ...]:
    """The modules of the plugins so far, for a process that needs the same ones."""
    return tuple(_loaded)


def plugin_fault(problem: BaseException) -> EnvironmentFault | None:
    """The error to show for an exception that passed through a plugin's code; None for any other exception.

    Args:
        problem: with its traceback. A plugin is on it where the plugin raised, or called what raised.
    """
    for frame, _ in traceback.walk_tb(problem.__traceback__):
        module = frame.f_globals.get("__name__", "")
        for plugin in _loaded:
            if module == plugin or module.startswith(f"{plugin.partition('.')[0]}."):
                return EnvironmentFault(f"plugin {plugin}", f"{type(problem).__name__}: {problem}", "mend the plugin")
    return None


def _load(name: str, load: Callable[[], object], remedy: str) -> None:
    if name in _loaded:
        return
    try:
        load()
    except (Exception, SystemExit) as problem:  # a plugin is foreign code, which fails in any way
        module = name.partition(":")[0]
        if isinstance(problem, ModuleNotFoundError) and f"{module}.".startswith(f"{problem.name}."):
            remedy = f"put its folder on PYTHONPATH, or {remedy.removeprefix('mend it or ')}"
        else:
            remedy += _place(problem, module)
        raise EnvironmentFault(f"plugin {name}", f"{type(problem).__name__}: {problem}", remedy) from problem
    _loaded.append(name.partition(":")[0])


def _place(problem: BaseException, plugin: str) -> str:
    """Where in the plugin's own code an exception came from: ` (line 3 of FILE)`; empty where that is not known."""
    if isinstance(problem, SyntaxError) and problem.filename:
        return f" (line {problem.lineno} of {problem.filename})"
    root = plugin.partition(".")[0]
    for frame, line in reversed(list(traceback.walk_tb(problem.__traceback__))):
        if frame.f_globals.get("__name__", "").partition(".")[0] == root:
            return f" (line {line} of {frame.f_code.co_filename})"
    return ""
