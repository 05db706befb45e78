"""The policy bundle, formats 1 and 2, as bytes: read, checked against its own manifest, written.

Neither torch nor timm is imported, so a bundle is answered for long before they have loaded. What is left to
`policy.PolicyBundle` is whether the architecture exists and has these tensors.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config.choices import LOSS
from ..runtime.sanitize import invalid_bundle, quoted
from ..transforms.space import SPACES
from . import canonical_json
from .fetch import fetch_container
from .limits import Limits
from .manifest import Manifest, ManifestDraft, check_manifest
from .manifest_base import check_digest, check_spelling, read_json
from .manifest_levels import LEVEL_INPUTS, Levels
from .safetensors_reader import RawTensor, read_container, write_container

Numbers = npt.NDArray[np.float64]

MAX_ALPHA = 1e3
# A feature of at most 1e12 and 65,536 hidden units stay finite in float32 with policies up to it.
MAX_POLICY = 1e6
MAX_LOG_LEVEL = 1e3
# float32 rounding of 196 probabilities moves their sum by less than 1e-5; a tenfold of it is still no other policy.
SUM_TOLERANCE = 1e-4

EXTRACTOR_PREFIX = "extractor."
POLICY_PREFIX = "policy."
ALPHA, PROBABILITIES, MEANS = "alpha", "sampler.probabilities", "sampler.means"
LOG_LEVELS = "sampler.log_levels"
SAMPLE_EFFECTS = "sampler.sample_effects"
FEATURE_CENTER, FEATURE_DIRECTIONS = "sampler.feature_center", "sampler.feature_directions"
MAX_FEATURE = 1e12  # of the mean feature; directions are inverse deviations
META_VALIDATION = "split.meta_validation"
STORED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_bundle(
    reference: str | os.PathLike[str], expect_digest: str | None = None, limits: Limits | None = None
) -> tuple[Manifest, dict[str, RawTensor]]:
    """A bundle's manifest and tensors, all checked but the architecture.

    Args:
        reference: a regular file, an https address or `hf://...` (see `hub`); it is read once, and only what was read
            is used.
        expect_digest: what `Manifest.digest` must be; None accepts any.
        limits: of its size; None takes the default ones.

    Raises:
        InputError: no such file, or not a bundle of format 1 or 2; one line of printable ASCII names the field.
        UsageError, EnvironmentFault: a remote name that cannot be meant, or cannot be reached.
    """
    limits = limits or Limits()
    fetched = fetch_container(reference, limits)
    return parse_bundle(fetched.content, fetched.source, expect_digest, limits)


def parse_bundle(
    content: bytes, source: str, expect_digest: str | None = None, limits: Limits | None = None
) -> tuple[Manifest, dict[str, RawTensor]]:
    """Parse a bundle's bytes: its manifest and its tensors, which are views of `content`.

    Args:
        content: the whole file.
        source: its name, for the error.
        expect_digest: what `Manifest.digest` must be; None accepts any.
        limits: of the header, the number of tensors and the images; None takes the default ones.

    Raises:
        InputError: not a bundle of format 1 or 2.
    """
    limits = limits or Limits()
    text, tensors = read_container(content, source, limits)
    return check_parts(text, read_json(text, source), tensors, source, expect_digest, limits), tensors


def check_parts(
    text: str,
    raw: dict[str, Any],
    tensors: Mapping[str, RawTensor],
    source: str,
    expect_digest: str | None,
    limits: Limits,
) -> Manifest:
    """The manifest, once it and the tensors are checked; as `parse_bundle`, of a container that was taken apart.

    Args:
        text: of the manifest.
        raw: what `sealed.read_json` has read in it.
        tensors: by name.
        source: the bundle's name, for the error.
        expect_digest: what `Manifest.digest` must be; None accepts any.
        limits: of the extractor's images.

    Raises:
        InputError: not a searched bundle of format 1 or 2.
    """
    manifest = check_manifest(raw, source)
    check_spelling(text, manifest, source)
    check_input_size(manifest.input.size, source, limits)
    # Before the digest: a bundle that was made wrong has a right digest; after the container: sizes are known.
    _check_layout(manifest, tensors, source)
    check_digest(digest_of(manifest, tensors), manifest.digest, expect_digest, source)
    _check_values(manifest, tensors, source)
    return manifest


def check_input_size(size: int, source: str, limits: Limits | None = None) -> None:
    """Accept images that an extractor may be asked to see; a search calls it before it starts.

    Args:
        size: their side, pixels.
        source: whose extractor it is, for the error.
        limits: of the pixels; None takes the default ones, and the error does not speak of raising them.

    Raises:
        InputError: they are too large.
    """
    allowed = (limits or Limits()).pixels
    if size * size > allowed:
        why = f"input.size {size} means {size * size} pixels, more than the {allowed} allowed"
        remedy = limits.how_to_raise("pixels", size * size) if limits else "search with a smaller image_size"
        raise invalid_bundle(source, why, remedy)


def serialise(draft: ManifestDraft, tensors: Mapping[str, RawTensor], limits: Limits | None = None) -> bytes:
    """The bundle's file: equal content gives equal bytes. A digest that the manifest has is computed anew.

    Args:
        draft: the manifest.
        tensors: by name.
        limits: under which it must be readable; None takes the default ones.

    Raises:
        InputError: what the reader would refuse; nothing is written that cannot be read.
    """
    sealed = draft.model_dump(exclude={"digest"}) | {"digest": digest_of(draft, tensors)}
    content = write_container(canonical_json.canonical(sealed), tensors)
    parse_bundle(content, "bundle to be written", limits=limits)
    return content


def digest_of(draft: ManifestDraft, tensors: Mapping[str, RawTensor]) -> str:
    """SHA-256, hexadecimal, of the manifest without its digest, then of every tensor in the order of the names.

    Each part is a line of canonical JSON, which holds no line break itself; a tensor's line, [name, dtype, shape],
    fixes how many bytes follow it. So no two contents are hashed as the same bytes.
    """
    digest = hashlib.sha256(draft.content().encode("ascii") + b"\n")
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(canonical_json.canonical([name, tensor.dtype, list(tensor.shape)]).encode("ascii") + b"\n")
        digest.update(tensor.data)
    return digest.hexdigest()


def _check_layout(manifest: ManifestDraft, tensors: Mapping[str, RawTensor], source: str) -> None:
    """Names, dtypes and shapes, as far as the manifest fixes them."""
    expected = dict(_expected_tensors(manifest))
    for name, (dtype, shape) in expected.items():
        if name not in tensors:
            raise invalid_bundle(source, f"tensor {quoted(name)} is missing")
        tensor = tensors[name]
        if tensor.dtype != dtype:
            raise invalid_bundle(source, f"tensor {quoted(name)} has dtype {tensor.dtype}, expected {dtype}")
        if shape is None:
            if len(tensor.shape) != 1:
                raise invalid_bundle(source, f"tensor {quoted(name)} has {len(tensor.shape)} dimensions, expected 1")
        elif tensor.shape != shape:
            raise invalid_bundle(
                source, f"tensor {quoted(name)} has shape {quoted(str(tensor.shape))}, expected {shape}"
            )
    stored = STORED_DTYPES[manifest.extractor.dtype]
    for name, tensor in tensors.items():
        if name in expected:
            continue
        if not name.startswith(EXTRACTOR_PREFIX):
            raise invalid_bundle(source, f"tensor {quoted(name)} is not one that this bundle's policy has")
        if tensor.dtype not in (stored, "I64"):
            raise invalid_bundle(source, f"tensor {quoted(name)} has dtype {tensor.dtype}, expected {stored} or I64")


def _expected_tensors(manifest: ManifestDraft) -> Iterator[tuple[str, tuple[str, tuple[int, ...] | None]]]:
    """Name, dtype and shape (None: one dimension of any size) of every tensor outside the extractor."""
    hidden, sees = manifest.policy.hidden, manifest.policy.input
    widths = {}
    if sees in ("both", "features"):
        widths["feature_layer"] = manifest.extractor.feature_width
    if sees in ("both", "embedding"):
        widths["embedding_layer"] = manifest.embedding.width
    if sees == LOSS:
        widths["loss_layer"] = 1
    for layer, width in widths.items():
        yield f"{POLICY_PREFIX}{layer}.weight", ("F32", (hidden, width))
        yield f"{POLICY_PREFIX}{layer}.bias", ("F32", (hidden,))
    yield f"{POLICY_PREFIX}output.weight", ("F32", (1, hidden * len(widths)))
    yield f"{POLICY_PREFIX}output.bias", ("F32", (1,))
    yield ALPHA, ("F32", () if manifest.alpha == "scalar" else None)
    pairs = (len(manifest.operations.names),) * 2
    yield PROBABILITIES, ("F32", pairs)
    yield MEANS, ("F32", pairs)
    if manifest.levels is not None:
        cells = (pairs[0], len(manifest.levels.edges) - 1)
        yield LOG_LEVELS, ("F32", (manifest.levels.stages, *cells))
        if manifest.levels.context:
            yield SAMPLE_EFFECTS, ("F32", (manifest.levels.context, *cells))
        if manifest.levels.input == LEVEL_INPUTS[2]:
            width = manifest.extractor.feature_width
            yield FEATURE_CENTER, ("F32", (width,))
            yield FEATURE_DIRECTIONS, ("F32", (manifest.levels.context, width))
    yield META_VALIDATION, ("I64", (manifest.dataset.counts.meta_validation,))


def _check_values(manifest: ManifestDraft, tensors: Mapping[str, RawTensor], source: str) -> None:
    """Finite everywhere, variances, p_jk a distribution, means outputs of a sigmoid, alpha a step size, split a set."""
    for name in sorted(tensors):
        if not tensors[name].is_finite():
            raise invalid_bundle(source, f"tensor {quoted(name)} has NaN or infinite values")
        # Batch normalisation divides by the root of the one, and counts in the other.
        if name.endswith((".running_var", ".num_batches_tracked")) and (least := tensors[name].bounds()[0]) < 0:
            raise invalid_bundle(source, f"tensor {quoted(name)} has the value {least:.6g}, expected none below 0")
        if name.startswith(POLICY_PREFIX):
            for value in tensors[name].bounds():
                if abs(value) > MAX_POLICY:
                    why = (
                        f"tensor {quoted(name)} has the value {value:.6g}, expected {MAX_POLICY:g} at most, either sign"
                    )
                    raise invalid_bundle(source, why)
    probabilities = np.asarray(tensors[PROBABILITIES].array(), dtype=np.float64)
    if probabilities.min() < 0:
        raise invalid_bundle(source, f"{PROBABILITIES} has the value {probabilities.min():.6g}, expected none below 0")
    if abs(probabilities.sum() - 1) > SUM_TOLERANCE:
        raise invalid_bundle(source, f"{PROBABILITIES} sums to {probabilities.sum():.6g}, expected 1")
    means = np.asarray(tensors[MEANS].array(), dtype=np.float64)
    for value in (means.min(), means.max()):
        if not 0 <= value <= 1:
            raise invalid_bundle(source, f"{MEANS} has the value {value:.6g}, expected 0 to 1")
    if manifest.levels is not None:
        _check_levels(
            manifest, manifest.levels, np.asarray(tensors[LOG_LEVELS].array(), np.float64), probabilities, source
        )
        for name, most in (
            (SAMPLE_EFFECTS, MAX_LOG_LEVEL),
            (FEATURE_CENTER, MAX_FEATURE),
            (FEATURE_DIRECTIONS, MAX_FEATURE),
        ):
            for value in tensors[name].bounds() if name in tensors else ():
                if abs(value) > most:
                    why = f"{name} has the value {value:.6g}, expected {most:g} at most, either sign"
                    raise invalid_bundle(source, why)
        if SAMPLE_EFFECTS in tensors:
            _check_shared(manifest, np.asarray(tensors[SAMPLE_EFFECTS].array(), np.float64), SAMPLE_EFFECTS, source)
    alpha = np.asarray(tensors[ALPHA].array(), dtype=np.float64)
    for value in (alpha.min(), alpha.max()):
        if not 0 < value <= MAX_ALPHA:
            raise invalid_bundle(
                source, f"{ALPHA} has the value {value:.6g}, expected above 0 and at most {MAX_ALPHA:g}"
            )
    indices = tensors[META_VALIDATION].array().astype(np.int64)
    images = manifest.dataset.counts.images
    for index in (indices.min(), indices.max()):
        if not 0 <= index < images:
            raise invalid_bundle(source, f"{META_VALIDATION} has the index {index}, expected 0 to {images - 1}")
    # Compared, not subtracted: a difference of int64 can wrap around.
    if not bool((indices[1:] > indices[:-1]).all()):
        raise invalid_bundle(source, f"{META_VALIDATION} is not in increasing order without repeats")


def _check_levels(
    manifest: ManifestDraft, levels: Levels, log_levels: Numbers, probabilities: Numbers, source: str
) -> None:
    """At most 0, one value for cells that the space cannot tell apart, and p_jk the product of the marginals."""
    for value in (log_levels.min(), log_levels.max()):
        if not -MAX_LOG_LEVEL <= value <= 0:
            why = f"{LOG_LEVELS} has the value {value:.6g}, expected {-MAX_LOG_LEVEL:g} to 0"
            raise invalid_bundle(source, why)
    _check_shared(manifest, log_levels, LOG_LEVELS, source)
    marginals = level_probabilities(log_levels, levels.strength).sum(1)
    if (odd := float(np.abs(probabilities - marginals[:, None] * marginals).max())) > SUM_TOLERANCE:
        why = f"{PROBABILITIES} is {odd:.3g} from the product of the operations' marginals of {LOG_LEVELS}"
        raise invalid_bundle(source, f"{why}, expected {SUM_TOLERANCE:g} at most")


def _check_shared(manifest: ManifestDraft, tables: Numbers, tensor: str, source: str) -> None:
    """Tables [n, K, bins] have one value for cells that the space cannot tell apart."""
    for row, (name, spread) in enumerate(SPACES[manifest.operations.space].ranges.items()):
        cells = tables[:, row]
        if spread is None and (cells != cells[:, :1]).any():
            raise invalid_bundle(source, f"{tensor} differs between levels of {name}, which has none")
        if spread is not None and not spread.signed and (cells != cells[:, ::-1]).any():
            raise invalid_bundle(source, f"{tensor} differs between directions of {name}, which has none")


def level_probabilities(log_levels: Numbers, strength: float) -> Numbers:
    """q(o, b), float64 [K, bins], sums to 1.

    Args:
        log_levels: float [stages, K, bins]; the second half of the stages is averaged.
        strength: kappa.
    """
    table = strength * np.asarray(log_levels, np.float64)[len(log_levels) // 2 :].mean(0)
    cells = np.exp(table - table.max())
    found: Numbers = cells / cells.sum()
    return found
