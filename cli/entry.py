"""Where the `mapolicy` command begins: signals count from here on, while modules are still being loaded too."""

import sys
from typing import NoReturn

from ..runtime.signals import INTERRUPT_EXIT, StopRequest

EARLY = "mapolicy: error: interrupted: nothing had begun; give the command again"


def main() -> NoReturn:
    """Run the command line."""
    with StopRequest().listening():
        try:
            from .main import main as run
        except (KeyboardInterrupt, SystemExit) as stop:
            print(EARLY, file=sys.stderr)
            sys.exit(stop.code if isinstance(stop, SystemExit) else INTERRUPT_EXIT)
        run()
