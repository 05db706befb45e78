"""How much a bundle may ask for before it is believed, and what to type where an honest one needs more."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What is refused unless the user raises it. How deep the JSON may nest is fixed by the format.

    Attributes:
        file_bytes: size of the file.
        header_bytes: size of the safetensors header, which holds the manifest.
        tensors: how many there are.
        parameters: numbers in the extractor's parameters and buffers, in its architecture and not only in the file.
            Five times ViT-Base: what a machine that trains on one device can keep beside the network it trains.
        pixels: of an image that the extractor sees, its `input.size` squared.

    Raises:
        UsageError: a limit that is no whole number above 0.
    """

    file_bytes: int = 2 * 2**30
    # ImageNet-21k's class names and the deepest networks in timm take half of it; 4 MiB of hostile JSON take a second.
    header_bytes: int = 2 * 2**20
    tensors: int = 10_000
    parameters: int = 500_000_000
    # 1024 x 1024, more than any network of timm's was made for; time and memory grow with it.
    pixels: int = 2**20

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if type(value) is not int or value < 1:
                raise UsageError(f"limit {spec.name}", f"{value!r} is no whole number above 0", "check --limit")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Limits":
        """Limits of which some are given as `name=number`.

        Raises:
            UsageError: an unknown name, or no whole number above 0.
        """
        known = [spec.name for spec in fields(cls)]
        values = {}
        for text in texts:
            name, _, number = text.partition("=")
            if name not in known or not (number.isascii() and number.isdecimal() and len(number) < 20):
                why = f"{text[:40]!r} is not NAME=NUMBER"
                raise UsageError("--limit", why, f"the limits are {', '.join(known)}")
            values[name] = int(number)
        return cls(**values)

    def how_to_raise(self, name: str, needed: int | None) -> str:
        """What to do where `needed` is over the limit `name`; None stands for an unknown number over it."""
        assert needed is None or getattr(self, name) < needed
        return f"if you trust its sender, add --limit {name}={needed or 'NUMBER'} (in Python: Limits)"
