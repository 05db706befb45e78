"""The policy bundle: one file with a searched policy and everything needed to use or fine-tune it.

    bundle = PolicyBundle.load("cifar10.safetensors")
    policy, extractor = bundle.build_policy(), bundle.build_extractor(device)

A bundle is untrusted. `mapolicy.bundle.format` checks its bytes first; this module checks the architecture, without
weights, before it builds a network. Nothing in a bundle is executed, and nothing in it can name a file or an address to
open.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..bundle import format as bundle_format
from ..bundle.fetch import fetch_container
from ..bundle.format import (
    ALPHA,
    EXTRACTOR_PREFIX,
    FEATURE_CENTER,
    FEATURE_DIRECTIONS,
    LOG_LEVELS,
    MEANS,
    META_VALIDATION,
    POLICY_PREFIX,
    PROBABILITIES,
    SAMPLE_EFFECTS,
)
from ..bundle.limits import Limits
from ..bundle.manifest import Manifest, ManifestDraft
from ..bundle.manifest_base import PolicyFile
from ..bundle.safetensors_reader import RawTensor
from ..transforms.space import SPACES, OperationSpace
from .extractor import check_architecture, classifier_tensors, fresh_extractor, probe_extractor
from .levels import FeatureDirections, SampleEffects, StagedLevels
from .network import PolicyNetwork
from .sampler import Draws, TransformationSampler

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, eq=False)
class PolicyBundle(PolicyFile):
    """A searched policy. Made by `load`, `from_bytes`, `from_raw` or `assemble`, which check it.

    Attributes:
        manifest: everything but the tensors, with the digest.
        tensors: by name, on the CPU, not to be changed: `policy.*` float32; `alpha` float32 [] or [parameter tensors
            of the proxy]; `sampler.probabilities` and `sampler.means` float32 [K, K]; `extractor.*` in the manifest's
            `extractor.dtype` (buffers that count: int64); `split.meta_validation` int64, increasing.
        origin: where it was read from (`source.Fetched.origin`); empty for a new bundle.
        limits: that it was loaded with; what it writes must be readable with them.
    """

    has_network: ClassVar[bool] = True

    manifest: Manifest
    tensors: Mapping[str, Tensor]
    origin: str = ""
    limits: Limits = field(default_factory=Limits)

    def __getstate__(self) -> dict[str, Any]:
        # For copies and other processes, where a read-only view of a mapping cannot go.
        return vars(self) | {"tensors": dict(self.tensors)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"tensors": MappingProxyType(state["tensors"])})

    @classmethod
    def load(cls, path: str | os.PathLike[str], expect_digest: str | None = None, limits: Limits | None = None) -> Self:
        """Load a bundle from a local or remote file.

        Args:
            path: a .safetensors file; as a text also an https address, or `hf://NAMESPACE/NAME[@REVISION]`.
            expect_digest: the digest that it must have; None accepts any.
            limits: of its size; None takes the default ones.

        Raises:
            InputError: not a valid bundle; one line names the field, what was found, what was expected.
            UsageError, EnvironmentFault: a remote name is malformed, or cannot be reached.
        """
        limits = limits or Limits()
        fetched = fetch_container(path, limits)
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
        """The bundle that `format.read_bundle` has read; its architecture is checked here.

        Args:
            manifest, raw: as it returned them.
            source: its name, for the error.
            limits: of the extractor's parameters; None takes the default ones.
            origin: where it was read from.

        Raises:
            InputError: the extractor's tensors are not those of its arch.
        """
        limits = limits or Limits()
        check_architecture(manifest, raw, source, limits)
        tensors = MappingProxyType({name: to_torch(tensor) for name, tensor in raw.items()})
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
        log_levels: Tensor | None = None,
        effects: SampleEffects | None = None,
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
            log_levels: float [stages, K, bins], at most 0, of an alignment sampler, which the draft's `levels`
                describes.
            effects: how images change these levels; None for draws that do not see images.
            limits: with which it must be readable; None takes the default ones.

        Raises:
            InputError: `load` would reject it.
        """
        stored = _DTYPES[bundle_format.STORED_DTYPES[draft.extractor.dtype]]
        tensors = {f"{POLICY_PREFIX}{name}": tensor.float() for name, tensor in policy.items()}
        tensors |= {ALPHA: alpha.float(), PROBABILITIES: probabilities.float(), MEANS: means.float()}
        tensors[META_VALIDATION] = meta_validation.long().sort().values
        if log_levels is not None:
            tensors[LOG_LEVELS] = log_levels.float()
        if effects is not None:
            tensors[SAMPLE_EFFECTS] = effects.table.float()
            if effects.features is not None:
                tensors[FEATURE_CENTER] = effects.features.center.float()
                tensors[FEATURE_DIRECTIONS] = effects.features.directions.float()
        for name, tensor in extractor.items():
            tensors[f"{EXTRACTOR_PREFIX}{name}"] = tensor.to(stored) if tensor.is_floating_point() else tensor.long()
        raw = {name: to_raw(tensor) for name, tensor in tensors.items()}
        content = bundle_format.serialise(draft, raw, limits)
        return cls.from_bytes(content, "bundle to be written", limits=limits)

    def to_bytes(self) -> bytes:
        """The bytes of the bundle's file; equal bundles give equal bytes."""
        raw = {name: to_raw(tensor) for name, tensor in self.tensors.items()}
        return bundle_format.serialise(self.manifest, raw, self.limits)

    @property
    def digest(self) -> str:
        """SHA-256 over manifest and tensors, 64 hexadecimal digits: the policy's name."""
        return self.manifest.digest

    @property
    def operation_space(self) -> OperationSpace:
        """The K operations and their ranges."""
        return SPACES[self.manifest.operations.space]

    @property
    def probabilities(self) -> Tensor:
        """p_jk, float32 [K, K], sums to 1; a copy."""
        return self.tensors[PROBABILITIES].clone()

    @property
    def means(self) -> Tensor:
        """Mean raw policy output of each pair (v_jk of Eq. 5), float32 [K, K] in [0, 1]; a copy."""
        return self.tensors[MEANS].clone()

    @property
    def log_levels(self) -> Tensor | None:
        """What an alignment sampler learned, float32 [stages, K, bins], at most 0; a copy. None for another sampler."""
        return self.tensors[LOG_LEVELS].clone() if LOG_LEVELS in self.tensors else None

    @property
    def sample_effects(self) -> SampleEffects | None:
        """How images change the levels; a copy. None for draws that do not see images."""
        if SAMPLE_EFFECTS not in self.tensors:
            return None
        features = None
        if FEATURE_DIRECTIONS in self.tensors:
            features = FeatureDirections(self.tensors[FEATURE_CENTER].clone(), self.tensors[FEATURE_DIRECTIONS].clone())
        return SampleEffects(self.tensors[SAMPLE_EFFECTS].clone(), features)

    @property
    def strength(self) -> float:
        """Kappa: how strongly the draws follow `log_levels`; 0 without them."""
        return 0.0 if self.manifest.levels is None else self.manifest.levels.strength

    def sampler(self) -> Draws:
        """What draws the policy's transformations: operations and levels, or pairs of operations."""
        table = self.log_levels
        if table is None:
            return TransformationSampler(probabilities=self.probabilities, space=self.operation_space)
        return StagedLevels(self.operation_space, table, self.strength, self.sample_effects)

    @property
    def alpha(self) -> Tensor:
        """Step size of the virtual step (Eq. 2), float32 [] or [parameter tensors of the proxy]; a copy."""
        return self.tensors[ALPHA].clone()

    @property
    def meta_validation(self) -> Tensor:
        """Positions of the meta-validation images in the data set, int64 [n], increasing; a copy."""
        return self.tensors[META_VALIDATION].clone()

    def data_settings(self) -> dict[str, Any]:
        """The `RunConfig` fields that a training run takes from this bundle (`Manifest.data_settings`).

        They download nothing; add `{"download": True}` to allow the download of the bundle's data set.
        """
        return self.manifest.data_settings()

    def needed_limits(self) -> Limits:
        """The limits that it was loaded under."""
        return self.limits

    def about(self) -> dict[str, Any]:
        """The proxy, and the epochs and settings of the search."""
        manifest = self.manifest
        return {
            "proxy": manifest.extractor.arch,
            "epochs": manifest.run.epochs,
            "search": dict(manifest.search.settings),
        }

    @property
    def has_classifier(self) -> bool:
        """Whether the file holds the proxy's classifier, which the deep feature does not need."""
        return self.classifier_tensors() <= self.tensors.keys()

    def classifier_tensors(self) -> frozenset[str]:
        """Names of the tensors of the proxy's classifier, whether the file holds them or not."""
        return classifier_tensors(self._fresh_extractor(torch.device("meta")))

    def build_policy(self) -> PolicyNetwork:
        """The policy network, float32 on the CPU, a new one each time."""
        shape = self.manifest.policy
        with torch.random.fork_rng(devices=[]):
            policy = PolicyNetwork(
                self.manifest.extractor.feature_width, self.manifest.embedding.width, shape.hidden, shape.input
            )
        policy.load_state_dict(self.tensors_under(POLICY_PREFIX))
        return policy

    def build_extractor(self, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Build the frozen proxy: eval mode, no gradients; for its features, not for its logits.

        If the file has no classifier, the classifier's weights are arbitrary.

        Args:
            device: of the network.
            dtype: of the network, whatever the file stores.

        Raises:
            InputError: it does not take images of the bundle's size, or its features of two plain images are not
                finite.
        """
        network = self._fresh_extractor(torch.device("cpu"))
        # Not strict, because the classifier may be missing; `check_architecture` has checked the rest.
        network.load_state_dict(self.tensors_under(EXTRACTOR_PREFIX), strict=False)
        network.eval().requires_grad_(False)
        # On the CPU an index out of range raises an exception; on CUDA it ends the process's context.
        probe_extractor(self.manifest, network, self.origin or "bundle")
        return network.to(device, dtype)

    def _fresh_extractor(self, device: torch.device) -> nn.Module:
        part, classes, channels = (
            self.manifest.extractor,
            len(self.manifest.dataset.classes),
            self.manifest.input.channels,
        )
        return fresh_extractor(part, classes, channels, device, self.origin or "bundle")

    def tensors_under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix, by the rest of their names."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def to_torch(tensor: RawTensor) -> Tensor:
    """A tensor of a file, on the CPU: a copy, so it can be written to and the file's bytes are let go."""
    return torch.frombuffer(bytearray(tensor.data), dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)


def to_raw(tensor: Tensor) -> RawTensor:
    """A tensor as a bundle's file holds it."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return RawTensor(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy().data)
