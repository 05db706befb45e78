"""Write and read the safetensors container as bytes.

The reader accepts only what the writer can write. safetensors' own reader also accepts gaps in the data, duplicate keys
and files that are zip archives at the same time. The writer is ours because a bundle's bytes must not depend on the
installed release of safetensors. Layout: github.com/huggingface/safetensors, README, "Format".
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.files import ReadAt
from ..runtime.sanitize import NEW_COPY, invalid_bundle, quoted
from . import canonical_json
from .limits import Limits

MAX_DEPTH = 3
MAX_DIMENSIONS = 8
MAX_NAME = 200
# Lists, tables and keys: for each tensor (its name and entry), and for the rest of the header (with its metadata).
_PER_TENSOR, _PER_HEADER = 7, 4

# numpy has no bfloat16: its bits, the upper half of a float32's, are read as uint16.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
}
SMALL_FILE = 2**26  # bytes; up to here the whole file is read at once, before its header is checked
_BF16_EXPONENT = 0x7F80
_CHUNK = 2**20


@dataclass(frozen=True)
class FileKind:
    """What tells a kind of file from another.

    Attributes:
        noun: what errors call it.
        full_name: the same where it is not clear from the command.
        metadata_key: the only key of the header's metadata.
        tensor_name: pattern of a tensor's whole name.
        remedy: what to do about a safetensors file without this metadata.
    """

    noun: str
    full_name: str
    metadata_key: str
    tensor_name: re.Pattern[str]
    remedy: str = NEW_COPY


BUNDLE = FileKind(
    "bundle",
    "policy bundle",
    "mapolicy",
    re.compile(
        r"alpha|sampler\.(probabilities|means|log_levels|sample_effects|feature_center|feature_directions)"
        r"|split\.meta_validation|policy\.[a-z_]+\.(weight|bias)"
        r"|extractor(\.[A-Za-z0-9_]+)+"
    ),
)
NETWORK = FileKind(
    "network file",
    "network file",
    "config.json",
    re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*"),
    "an older mapolicy or another program wrote it; train again, or use it in timm",
)
KINDS = (BUNDLE, NETWORK)


@dataclass(frozen=True)
class RawTensor:
    """A tensor as stored in the file.

    Attributes:
        dtype: a key of `DTYPES`.
        shape: sizes, each at least 1; () is a scalar.
        data: little-endian, row-major bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def array(self) -> npt.NDArray[Any]:
        """A read-only view as a numpy array; BF16 comes as uint16 bit patterns."""
        return np.frombuffer(self.data, dtype=DTYPES[self.dtype]).reshape(self.shape)

    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity. Works in chunks that need a few MiB of memory."""
        flat = self.array().reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            if self.dtype == "BF16":
                # An exponent with all bits set is NaN or infinity.
                if bool(((part & _BF16_EXPONENT) == _BF16_EXPONENT).any()):
                    return False
            elif self.dtype != "I64" and not bool(np.isfinite(part).all()):
                return False
        return True

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest number of a finite tensor. Works in chunks, like `is_finite`."""
        flat = self.array().reshape(-1)
        least, most = math.inf, -math.inf
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            if self.dtype == "BF16":
                part = (part.astype("<u4") << 16).view("<f4")
            least, most = min(least, float(part.min())), max(most, float(part.max()))
        return least, most


def write_container(metadata: str, tensors: Mapping[str, RawTensor], kind: FileKind = BUNDLE) -> bytes:
    """The file's bytes. Equal arguments give equal bytes, whatever the order of the mapping.

    Args:
        metadata: value of the only metadata key.
        tensors: by name.
        kind: of the file.
    """
    # The widest dtype first, so that each tensor is aligned to its own size; safetensors' writer does the same.
    names = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype].itemsize, name))
    entries = [f'"__metadata__":{canonical_json.canonical({kind.metadata_key: metadata})}']
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + len(tensor.data)
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        entries.append(f"{canonical_json.canonical(name)}:{canonical_json.canonical(entry)}")
    header = f"{{{','.join(entries)}}}".encode("ascii")
    header += b" " * (-len(header) % 8)
    return b"".join((struct.pack("<Q", len(header)), header, *(tensors[name].data for name in names)))


def read_container(
    content: bytes, source: str, limits: Limits, kind: FileKind = BUNDLE
) -> tuple[str, dict[str, RawTensor]]:
    """The metadata and the tensors (views of `content`, not copies).

    Args:
        content: the whole file.
        source: its name, for the error.
        limits: on the header and the number of tensors.
        kind: of the file.

    Raises:
        InputError: the file is not a container that `write_container` could have written; the line says what is wrong.
    """

    def read_at(position: int, count: int) -> bytes:
        return content[position : position + count]

    start, metadata, places = check_header(source, read_at, len(content), limits, kind)
    data = memoryview(content)[start:].toreadonly()
    return metadata, {
        name: RawTensor(dtype, shape, data[begin:end]) for name, (dtype, shape, begin, end) in places.items()
    }


# By name: dtype, shape, first byte and the one after the last, counted from the end of the header.
Places = dict[str, tuple[str, tuple[int, ...], int, int]]


def check_header(
    source: str, read_at: ReadAt, size: int, limits: Limits, kind: FileKind = BUNDLE
) -> tuple[int, str, Places]:
    """Parse the header: the position at which the tensors' data begins, the metadata, and each tensor's place.

    Args:
        source: the file's name, for the error.
        read_at: reads bytes of the file.
        size: of the file in bytes.
        limits: on the header and the number of tensors.
        kind: of the file.

    Raises:
        InputError: `write_container` could not have written this header, or the tensors do not fill the file.
    """
    try:
        return _read_header(read_at, size, limits, kind)
    except _ContainerError as problem:
        raise invalid_bundle(source, problem.why, problem.remedy) from None


class _ContainerError(Exception):
    """What is wrong with the container, and what to do."""

    def __init__(self, why: str, remedy: str = NEW_COPY) -> None:
        self.why, self.remedy = why, remedy


def _read_header(read_at: ReadAt, size: int, limits: Limits, kind: FileKind) -> tuple[int, str, Places]:
    if size < 10:
        raise _ContainerError(f"has {size} bytes, too few for a {kind.noun}")
    beginning = read_at(0, 512)
    (length,) = struct.unpack_from("<Q", beginning)
    if beginning[8:9] != b"{" or length > limits.header_bytes:
        if look := guess_kind(beginning):
            raise _ContainerError(f"is not a {kind.noun}: it looks like {look}")
        if length > limits.header_bytes:
            remedy = limits.how_to_raise("header_bytes", length) if length <= size - 8 else NEW_COPY
            why = f"says its header has {length} bytes, more than the {limits.header_bytes} allowed"
            raise _ContainerError(why, remedy)
        raise _ContainerError("is not a safetensors file: its header does not begin with '{'")
    start = 8 + length
    if start > size:
        raise _ContainerError(f"ends inside its header ({size} bytes, the header reaches to {start})")
    if length % 8:
        raise _ContainerError(f"has a header of {length} bytes, expected a multiple of 8")
    if _holds_a_zip_archive(read_at, size):
        raise _ContainerError("is a zip archive as well, which other programs would unpack or run")
    try:
        most = _PER_TENSOR * limits.tensors + _PER_HEADER
        header = canonical_json.parse(read_at(8, length), MAX_DEPTH, most, most)
    except canonical_json.TooLargeError as problem:
        tensors = math.ceil((problem.found - _PER_HEADER) / _PER_TENSOR)
        raise _ContainerError(f"header {problem}", limits.how_to_raise("tensors", tensors)) from None
    except ValueError as problem:
        raise _ContainerError(f"header {problem}") from None
    return start, _metadata(header.pop("__metadata__", None), kind), dict(_places(header, size - start, kind))


def _metadata(found: object, kind: FileKind) -> str:
    expected = kind.metadata_key
    if not isinstance(found, dict) or expected not in found:
        for other in KINDS:
            if isinstance(found, dict) and other.metadata_key in found:
                raise _ContainerError(f"is a {other.full_name}, expected a {kind.full_name}", f"name a {kind.noun}")
        raise _ContainerError(f"is not a {kind.full_name}: its header has no metadata {expected!r}", kind.remedy)
    for key in found:
        if key != expected:
            raise _ContainerError(f"has metadata {quoted(key)}, expected {expected!r} alone")
    value = found[expected]
    if not isinstance(value, str):
        raise _ContainerError(f"metadata {expected!r} is {quoted(value)}, expected a text")
    return value


def _places(
    header: dict[str, object], data: int, kind: FileKind
) -> Iterator[tuple[str, tuple[str, tuple[int, ...], int, int]]]:
    """The entries of `Places` for a file with `data` bytes after its header."""
    end = 0
    for name, entry in header.items():
        if len(name) > MAX_NAME or not kind.tensor_name.fullmatch(name):
            raise _ContainerError(f"has a tensor {quoted(name)}, which is not a name that {kind.noun}s have")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _ContainerError(f"tensor {quoted(name)} has not just dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise _ContainerError(f"tensor {quoted(name)} has dtype {quoted(dtype)}, expected {', '.join(DTYPES)}")
        if not _is_integers(shape, least=1, most=2**40) or len(shape) > MAX_DIMENSIONS:
            found = canonical_json.canonical(shape)
            why = f"expected at most {MAX_DIMENSIONS} sizes of 1 or more"
            raise _ContainerError(f"tensor {quoted(name)} has shape {quoted(found)}, {why}")
        if not _is_integers(offsets, least=0, most=2**63) or len(offsets) != 2:
            found = canonical_json.canonical(offsets)
            raise _ContainerError(f"tensor {quoted(name)} has data_offsets {quoted(found)}, expected [begin, end]")
        begin, expected_begin = offsets[0], end
        end = begin + math.prod(shape) * DTYPES[dtype].itemsize
        if begin != expected_begin:
            fault = "a hole" if begin > expected_begin else "an overlap"
            raise _ContainerError(f"tensor {quoted(name)} begins at {begin}, expected {expected_begin} ({fault})")
        if begin % DTYPES[dtype].itemsize:
            raise _ContainerError(f"tensor {quoted(name)} begins at {begin}, which its type's size does not divide")
        if offsets[1] != end:
            raise _ContainerError(f"tensor {quoted(name)} ends at {offsets[1]}, its shape and dtype say {end}")
        if end > data:
            raise _ContainerError(f"is truncated: tensor {quoted(name)} ends at {end} of {data} bytes of data")
        yield name, (dtype, tuple(shape), begin, end)
    if end != data:
        raise _ContainerError(f"has {data - end} bytes after its last tensor")


def _is_integers(values: object, least: int, most: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value <= most for value in values)


_MAGIC = (
    (b"PK", "a zip archive (a .pt, .npz or .zip file)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89PNG", "a PNG image"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
)


def guess_kind(content: bytes) -> str:
    """What a file that is not a bundle seems to be, by its first 512 bytes; empty if unknown."""
    for magic, kind in _MAGIC:
        if content.startswith(magic):
            return kind
    if content[0] == 0x80 and content[1] in range(2, 6):
        return "a pickle (an old .pt or .pkl file)"
    if content[257:262] == b"ustar":
        return "a tar archive"
    text = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "an HTML or XML page"
    if text.startswith((b"{", b"[")):
        return "JSON"
    if text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        return "a text file"
    return ""


def _holds_a_zip_archive(read_at: ReadAt, size: int) -> bool:
    """Whether the file ends like a zip archive: with an end record that points to a directory."""
    tail_start = max(0, size - 65_557)  # the end record and the longest comment
    tail = read_at(tail_start, size - tail_start)
    position = tail.rfind(b"PK\x05\x06")
    while position >= 0:
        place = tail_start + position
        if place >= 20 and read_at(place - 20, 4) == b"PK\x06\x07":  # locator of a zip64 end record
            return True
        if position + 16 <= len(tail):
            (directory,) = struct.unpack_from("<I", tail, position + 12)
            if 0 < directory <= place and read_at(place - directory, 4) == b"PK\x01\x02":
                return True
        position = tail.rfind(b"PK\x05\x06", 0, position)
    return False
