"""The entry point of `mapolicy`: it handles signals from the start, also while modules are loaded."""

import sys
from typing import NoReturn

from ..errors import MapolicyError
from ..runtime.plugins import load_plugins
from ..runtime.signals import INTERRUPT_EXIT, StopRequest
from .clock import of_process

EARLY = "mapolicy: error: interrupted: nothing had begun; give the command again"


def main() -> NoReturn:
    """Run the command line."""
    with StopRequest().listening():
        try:
            problem = _plugin_problem()
            from .main import main as run
        except (KeyboardInterrupt, SystemExit) as stop:
            print(EARLY, file=sys.stderr)
            sys.exit(stop.code if isinstance(stop, SystemExit) else INTERRUPT_EXIT)
        if problem is not None:
            from .main import fail

            sys.exit(fail(problem, "--debug" in sys.argv))
        with of_process():
            run()


def _plugin_problem() -> MapolicyError | None:
    """Import the plugins before the commands are built, so that their help lists what was registered."""
    try:
        load_plugins()
    except MapolicyError as problem:
        return problem
    return None
