"""What a command ends with for an exception: one line, and the exit code of the process and in `status.json`."""

import os

from ..errors import EnvironmentFault, MapolicyError
from .files import free_memory
from .plugins import plugin_fault


def shown_fault(problem: BaseException) -> MapolicyError | None:
    """The error that a command ends with for an exception; None for a bug of mapolicy."""
    match problem:
        case MapolicyError():
            return problem
        case MemoryError():
            return EnvironmentFault(
                "memory", f"there is not enough; {free_memory()}", "free some, or use another machine"
            )
        case OSError(filename=str() | bytes() | os.PathLike() as place, strerror=str() as why):
            return EnvironmentFault(os.fsdecode(place), why, "check the disk and the path")
        case OSError(strerror=str() as why):
            return EnvironmentFault("output", why)
        case OSError():
            return EnvironmentFault(type(problem).__name__, str(problem), "--debug shows where")
    return plugin_fault(problem)


def exit_code_of(problem: BaseException) -> int:
    """The exit code of a command that ends with an exception other than a signal's."""
    fault = shown_fault(problem)
    return MapolicyError.exit_code if fault is None else fault.exit_code
