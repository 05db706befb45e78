"""The policy bundle: one file that holds a searched policy and all that is needed to go on with it.

    bundle = PolicyBundle.load("cifar10.safetensors")
    policy, extractor = bundle.build_policy(), bundle.build_extractor(device)

A bundle comes from another team. `bundle_format` has checked its bytes before anything here sees them; here the
architecture is checked, without weights, before a network is built. Nothing in a bundle is run, and nothing in it can
name a file or an address to open.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from . import bundle_format, files, hub
from .bundle_format import ALPHA, EXTRACTOR_PREFIX, MEANS, META_VALIDATION, POLICY_PREFIX, PROBABILITIES
from .errors import UsageError
from .features import deep_features
from .limits import Limits
from .manifest import Extractor, Manifest, ManifestDraft
from .networks import build_network
from .policy import PolicyNetwork
from .refusal import refused, shown
from .tensor_container import RawTensor

# Beyond it the policy network's products could overflow (`bundle_format.MAX_POLICY`).
MAX_FEATURE = 1e12

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def check_extractor(
    extractor: Extractor, classes: int, channels: int, source: str, limits: Limits | None = None
) -> nn.Module:
    """The extractor without weights (on the meta device), if its arch and arguments may stand in a bundle.

    A search calls it before it starts, so that no search ends in a bundle that cannot be loaded.

    Args:
        extractor: arch, arguments and feature width.
        classes: logits of the proxy.
        channels: of the images.
        source: whose extractor it is, for the error.
        limits: of its parameters; None takes the default ones, and the error does not speak of raising them.

    Raises:
        InputError: the arch is not in timm's registry, does not take the arguments, has too many parameters, no
            features, or features of another width.
    """
    network = _fresh(extractor, classes, channels, torch.device("meta"), source)
    # Buffers too: tables of relative positions grow with the fourth power of a window, and need not be in the file.
    size = sum(tensor.numel() for part in (network.parameters(), network.buffers()) for tensor in part)
    allowed = (limits or Limits()).parameters
    if size > allowed:
        why = f"extractor.arch {extractor.arch} has {size} parameters, more than the {allowed} allowed"
        raise refused(source, why, limits.raising("parameters", size) if limits else "search with a smaller proxy")
    width = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
    if width is None or not hasattr(network, "forward_head"):
        raise refused(source, f"extractor.arch {extractor.arch} has no features", "search with another proxy")
    if width != extractor.feature_width:
        raise refused(source, f"extractor.feature_width is {extractor.feature_width}, {extractor.arch} has {width}")
    return network


@dataclass(frozen=True, eq=False)
class PolicyBundle:
    """A searched policy. Made by `load`, `from_bytes`, `from_raw` or `assemble`, which check it.

    Attributes:
        manifest: everything but the tensors, with the digest.
        tensors: by name, on the CPU, not to be changed: `policy.*` float32; `alpha` float32 [] or [parameter tensors
            of the proxy]; `sampler.probabilities` and `sampler.means` float32 [K, K]; `extractor.*` in the manifest's
            `extractor.dtype` (buffers that count: int64); `split.meta_validation` int64, increasing.
        origin: where it was read from (`hub.Fetched.origin`); empty for one that was made here.
        limits: under which it was loaded, and under which what it writes must be readable.
    """

    manifest: Manifest
    tensors: Mapping[str, Tensor]
    origin: str = ""
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def load(cls, path: str | os.PathLike[str], expect_digest: str | None = None, limits: Limits | None = None) -> Self:
        """The bundle in a file, which may lie elsewhere.

        Args:
            path: a .safetensors file; as a text also an https address, or `hf://NAMESPACE/NAME[@REVISION]`.
            expect_digest: the digest that it must have; None accepts any.
            limits: of its size; None takes the default ones.

        Raises:
            InputError: not a bundle that can be used; one line names the field, what was found, what was expected.
            UsageError, EnvironmentFault: a remote name that cannot be meant, or cannot be reached.
        """
        limits = limits or Limits()
        fetched = hub.fetch(path, limits)
        manifest, raw = bundle_format.parse_bundle(fetched.content, fetched.source, expect_digest, limits)
        return cls.from_raw(manifest, raw, fetched.source, limits, fetched.origin)

    @classmethod
    def from_bytes(
        cls, content: bytes, source: str = "bundle", expect_digest: str | None = None, limits: Limits | None = None
    ) -> Self:
        """The bundle in these bytes; as `load`."""
        manifest, raw = bundle_format.parse_bundle(content, source, expect_digest, limits)
        return cls.from_raw(manifest, raw, source, limits)

    @classmethod
    def from_raw(
        cls,
        manifest: Manifest,
        raw: Mapping[str, RawTensor],
        source: str = "bundle",
        limits: Limits | None = None,
        origin: str = "",
    ) -> Self:
        """The bundle that `bundle_format.read_bundle` has read, once its architecture is checked.

        Args:
            manifest, raw: as it returned them.
            source: its name, for the error.
            limits: of the extractor's parameters; None takes the default ones.
            origin: where it was read from.

        Raises:
            InputError: the extractor's tensors are not those of its arch.
        """
        limits = limits or Limits()
        _check_architecture(manifest, raw, source, limits)
        tensors = MappingProxyType({name: _to_torch(tensor) for name, tensor in raw.items()})
        return cls(manifest, tensors, origin, limits)

    @classmethod
    def assemble(
        cls,
        draft: ManifestDraft,
        *,
        policy: Mapping[str, Tensor],
        alpha: Tensor,
        probabilities: Tensor,
        means: Tensor,
        extractor: Mapping[str, Tensor],
        meta_validation: Tensor,
        limits: Limits | None = None,
    ) -> Self:
        """The bundle of a finished search.

        Args:
            draft: the manifest but for the digest.
            policy: state dict of the policy network.
            alpha: float [] or [parameter tensors of the proxy].
            probabilities: p_jk, float [K, K].
            means: mean raw policy outputs, float [K, K].
            extractor: state dict of the proxy; stored in the draft's `extractor.dtype`.
            meta_validation: int64 [n], positions of the meta-validation images, in any order.
            limits: under which it must be readable; None takes the default ones.

        Raises:
            InputError: what `load` would refuse.
        """
        stored = _DTYPES[bundle_format.STORED_DTYPES[draft.extractor.dtype]]
        tensors = {f"{POLICY_PREFIX}{name}": tensor.float() for name, tensor in policy.items()}
        tensors |= {ALPHA: alpha.float(), PROBABILITIES: probabilities.float(), MEANS: means.float()}
        tensors[META_VALIDATION] = meta_validation.long().sort().values
        for name, tensor in extractor.items():
            tensors[f"{EXTRACTOR_PREFIX}{name}"] = tensor.to(stored) if tensor.is_floating_point() else tensor.long()
        raw = {name: _to_raw(tensor) for name, tensor in tensors.items()}
        content = bundle_format.serialise(draft, raw, limits)
        return cls.from_bytes(content, "bundle to be written", limits=limits)

    def to_bytes(self) -> bytes:
        """The bundle's file; equal bundles give equal bytes."""
        raw = {name: _to_raw(tensor) for name, tensor in self.tensors.items()}
        return bundle_format.serialise(self.manifest, raw, self.limits)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file: whole or not at all, its mode by the umask.

        Raises:
            EnvironmentFault: the folder cannot be written, the disk is full, or `path` is a link.
        """
        files.write_atomically(Path(path), self.to_bytes())

    @property
    def digest(self) -> str:
        """SHA-256 over manifest and tensors, 64 hexadecimal digits: the policy's name."""
        return self.manifest.digest

    @property
    def probabilities(self) -> Tensor:
        """p_jk, float32 [K, K], sums to 1; a copy."""
        return self.tensors[PROBABILITIES].clone()

    @property
    def means(self) -> Tensor:
        """Mean raw policy output of each pair (v_jk of Eq. 5), float32 [K, K] in [0, 1]; a copy."""
        return self.tensors[MEANS].clone()

    @property
    def alpha(self) -> Tensor:
        """Step size of the virtual step (Eq. 2), float32 [] or [parameter tensors of the proxy]; a copy."""
        return self.tensors[ALPHA].clone()

    @property
    def meta_validation(self) -> Tensor:
        """Positions of the meta-validation images in the data set, int64 [n], increasing; a copy."""
        return self.tensors[META_VALIDATION].clone()

    def data_settings(self) -> dict[str, Any]:
        """The `RunConfig` fields that a training run with this bundle must share with the search.

        Less the data set's name where it is one that is read through timm, maybe from the network: what a bundle says
        must not decide that; the user names it.
        """
        settings = self.manifest.data_settings()
        return {name: value for name, value in settings.items() if name != "dataset" or "/" not in value}

    @property
    def has_classifier(self) -> bool:
        """Whether the file holds the proxy's classifier, which the deep feature does not need."""
        return self.classifier_tensors() <= self.tensors.keys()

    def classifier_tensors(self) -> frozenset[str]:
        """Names of the tensors of the proxy's classifier, whether the file holds them or not."""
        manifest = self.manifest
        meta = torch.device("meta")
        network = _fresh(manifest.extractor, len(manifest.dataset.classes), manifest.input.channels, meta, "bundle")
        return _classifier_tensors(network)

    def build_policy(self) -> PolicyNetwork:
        """The policy network, float32 on the CPU, a new one each time."""
        shape = self.manifest.policy
        with torch.random.fork_rng(devices=[]):
            policy = PolicyNetwork(
                self.manifest.extractor.feature_width, self.manifest.embedding.width, shape.hidden, shape.input
            )
        policy.load_state_dict(self._part(POLICY_PREFIX))
        return policy

    def build_extractor(self, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The frozen proxy, a new one each time: eval mode, no gradients; for its features, not for its logits.

        The weights of a classifier that the file does not hold mean nothing.

        Args:
            device: where it shall live.
            dtype: what it computes in, whatever the file stores.

        Raises:
            InputError: it does not take images of the bundle's size, or its features of two plain ones are not finite.
        """
        manifest = self.manifest
        cpu = torch.device("cpu")
        source = self.origin or "bundle"
        network = _fresh(manifest.extractor, len(manifest.dataset.classes), manifest.input.channels, cpu, source)
        # Not strict: the classifier may be missing, and nothing else can (`_check_architecture`).
        network.load_state_dict(self._part(EXTRACTOR_PREFIX), strict=False)
        network.eval().requires_grad_(False)
        # On the CPU: an index out of range there is an exception, on CUDA the end of the process's context.
        _probe(manifest, network, source)
        return network.to(device, dtype)

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def _fresh(extractor: Extractor, classes: int, channels: int, device: torch.device, source: str) -> nn.Module:
    """The extractor's network with weights that mean nothing; the global generator is left as it was."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return build_network(extractor.arch, extractor.model_args, classes, channels, seed=0, device=device)
    except UsageError as problem:
        why = f"extractor.arch {shown(extractor.arch)}: {shown(problem.why, 80)[1:-1]}"
        raise refused(source, why, "install the mapolicy and timm that wrote it") from None
    except Exception as problem:
        # Constructors of timm fail in any way on arguments they were not written for (ZeroDivisionError, KeyError).
        raise refused(
            source, f"extractor.arch {extractor.arch} cannot be built: {shown(str(problem), 60)[1:-1]}"
        ) from None


def _classifier_tensors(network: nn.Module) -> frozenset[str]:
    """Names, in a bundle, of the layers that timm calls the classifier (two of them in distilled networks)."""
    found = network.get_classifier() if hasattr(network, "get_classifier") else ()  # type: ignore[operator]
    layers = found if isinstance(found, tuple | list) else (found,)
    prefixes = tuple(f"{name}." for name, module in network.named_modules() if any(module is part for part in layers))
    return frozenset(f"{EXTRACTOR_PREFIX}{name}" for name in network.state_dict() if name.startswith(prefixes))


def _probe(manifest: Manifest, network: nn.Module, source: str) -> None:
    """The extractor sees a black and a white image: what is finite in the file need not be finite in use."""
    arch, shape = manifest.extractor.arch, (manifest.input.channels, manifest.input.size, manifest.input.size)
    pixels = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, *shape)
    mean, std = (torch.tensor(values)[:, None, None] for values in (manifest.input.mean, manifest.input.std))
    try:
        with torch.no_grad():
            features = deep_features(network, (pixels - mean) / std)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as problem:
        reason = shown(str(problem).strip().split("\n")[0], 60)[1:-1]
        raise refused(source, f"extractor.arch {arch} does not take images of input.size {shape} ({reason})") from None
    if features.shape != (2, manifest.extractor.feature_width):
        why = f"extractor.feature_width is {manifest.extractor.feature_width}, {arch} gives {tuple(features.shape[1:])}"
        raise refused(source, why)
    largest = float(features.abs().max())  # NaN where there is one
    if not largest <= MAX_FEATURE:
        why = f"extractor.arch {arch} gives plain images a feature of {largest:g}, expected at most {MAX_FEATURE:g}"
        raise refused(source, why)


def _check_architecture(manifest: Manifest, raw: Mapping[str, RawTensor], source: str, limits: Limits) -> None:
    """The extractor's tensors are those of its arch, and alpha per layer has one number for each parameter tensor."""
    classes, channels = len(manifest.dataset.classes), manifest.input.channels
    network = check_extractor(manifest.extractor, classes, channels, source, limits)
    expected = {f"{EXTRACTOR_PREFIX}{name}": tensor for name, tensor in network.state_dict().items()}
    found = {name: tensor for name, tensor in raw.items() if name.startswith(EXTRACTOR_PREFIX)}
    classifier = _classifier_tensors(network)
    if not classifier & found.keys():
        expected = {name: tensor for name, tensor in expected.items() if name not in classifier}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise refused(source, f"tensor {shown(name)} of {manifest.extractor.arch} is missing")
        if name not in expected:
            raise refused(source, f"tensor {shown(name)} is not one of {manifest.extractor.arch}")
        shape = tuple(expected[name].shape)
        if found[name].shape != shape:
            raise refused(
                source, f"tensor {shown(name)} has shape {shown(str(found[name].shape), 32)[1:-1]}, expected {shape}"
            )
        if (found[name].dtype != "I64") != expected[name].is_floating_point():
            raise refused(
                source,
                f"tensor {shown(name)} has dtype {found[name].dtype}, {manifest.extractor.arch} has another kind",
            )
    layers = sum(1 for _ in network.parameters())
    if manifest.alpha == "per-layer" and raw[ALPHA].shape != (layers,):
        raise refused(
            source, f"alpha has {raw[ALPHA].shape[0]} numbers, expected {layers} (parameter tensors of the extractor)"
        )


def _to_torch(tensor: RawTensor) -> Tensor:
    # A copy: the tensor can be written to, and the file's bytes are let go.
    return torch.frombuffer(bytearray(tensor.data), dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)


def _to_raw(tensor: Tensor) -> RawTensor:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return RawTensor(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy().data)
