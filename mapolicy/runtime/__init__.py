"""Below everything else: files, locks, signals, devices, random generators, and escaping of untrusted text."""

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .device import reproducible as reproducible
    from .device import resolve_device as resolve_device
    from .files import write_atomically as write_atomically
    from .lock import folder_lock as folder_lock
    from .machine import hardware as hardware
    from .random import generator as generator
    from .random import seed_for as seed_for
    from .sanitize import printable as printable

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "folder_lock": "lock",
        "generator": "random",
        "hardware": "machine",
        "printable": "sanitize",
        "reproducible": "device",
        "resolve_device": "device",
        "seed_for": "random",
        "write_atomically": "files",
    },
)
