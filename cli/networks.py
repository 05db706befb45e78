"""A command's trained network: its file is checked before torch is imported, which takes seconds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ..bundle.limits import Limits
from ..inference.network_file import NetworkFile, read_network_file
from . import options

if TYPE_CHECKING:
    from ..inference.network import TrainedNetwork

NetworkArgument = Annotated[
    str, typer.Argument(help="The folder of a finished run, or its network.safetensors.", metavar="RUN|NETWORK")
]


@dataclass(frozen=True)
class NetworkChecks:
    """What a network file must satisfy to be used."""

    panel: ClassVar[str] = "Checks of the network"

    trust_arguments: Annotated[
        bool,
        typer.Option(
            "--trust-arguments", help="Accept any argument of the network's constructor, of a file that you trust."
        ),
    ] = False
    limits: options.LimitOption = None

    def read(self, reference: str) -> NetworkFile:
        """The checked file."""
        return read_network_file(reference, Limits.of(self.limits or ()))

    def build(self, file: NetworkFile, device: str | None = "cpu") -> "TrainedNetwork":
        """The network of a checked file, on a device; imports torch."""
        from ..inference.network import ready_network
        from ..runtime.device import resolve_device

        return ready_network(file, resolve_device(device or "auto"), self.trust_arguments)


@dataclass(frozen=True)
class Execution:
    """How a network runs over images."""

    batch_size: Annotated[int, typer.Option(help="Images that the network sees at once.", min=1, max=100_000)] = 64
    device: options.Device = None
    quiet: options.Quiet = False
