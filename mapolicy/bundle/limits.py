"""Limits on an untrusted bundle's size, and how a user raises them for a trusted one."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Largest sizes that a bundle may have; the user can raise each. The JSON's depth is fixed by the format.

    Attributes:
        file_bytes: size of the file.
        header_bytes: size of the safetensors header, which holds the manifest.
        tensors: number of tensors.
        parameters: numbers in the parameters and buffers of the extractor's architecture. The default is five times
            ViT-Base, which fits on one device beside the network that is trained.
        pixels: of an image that the extractor takes, its `input.size` squared.

    Raises:
        UsageError: a limit is not a whole number above 0.
    """

    file_bytes: int = 2 * 2**30
    # The class names of ImageNet-21k and the deepest networks of timm need half of it. Parsing 4 MiB of hostile JSON
    # takes a second.
    header_bytes: int = 2 * 2**20
    tensors: int = 10_000
    parameters: int = 500_000_000
    # 1024 x 1024, more than any network of timm expects; time and memory grow with it.
    pixels: int = 2**20

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if type(value) is not int or value < 1:
                raise UsageError(f"limit {spec.name}", f"{value!r} is not a whole number above 0", "check --limit")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Limits":
        """The default limits, with those changed that are given as texts `name=number`.

        Raises:
            UsageError: an unknown name, or a number that is not a whole number above 0.
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
        """The remedy for a bundle that needs more than the limit `name`; `needed` is None where it is not known."""
        assert needed is None or getattr(self, name) < needed
        return f"if you trust its sender, add --limit {name}={needed or 'NUMBER'} (in Python: Limits)"
