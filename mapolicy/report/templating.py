"""The template engine of the pages, and the pieces that pages have in common: inlined files, hashes, images.

Foreign text is escaped, and characters that do not print are replaced.
"""

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ..runtime.sanitize import printable

FOLDER = Path(__file__).with_name("templates")
LARGEST_IMAGE = 96  # pixels of a side


def environment() -> Environment:
    """The template engine: it escapes every value and fails on a missing one."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.finalize = lambda value: value if isinstance(value, Markup | int | float) else _printable_lines(str(value))
    made.filters["number"] = lambda value: repr(float(value))
    made.filters["sentence"] = lambda text: f"{text[:1].upper()}{text[1:]}."
    return made


def inlined(name: str) -> Markup:
    """Our style sheet or script of this name, as the content of a page's element."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def script_hash(script: str) -> str:
    """The source expression that allows this script in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def png_address(image: Tensor, largest: int = LARGEST_IMAGE) -> str:
    """An image uint8 [C, H, W] as a data URL with a PNG, shrunk until no side is longer than `largest` pixels."""
    pixels = image.numpy()
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2))
    picture.thumbnail((largest, largest))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
