"""A run's state in one safetensors file: tensors as they are, the rest as JSON. No pickle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..errors import InputError
from ..policy.sampler import Sampler
from ..runtime.files import read_regular_file, write_atomically

LARGEST_CHECKPOINT = 64 * 2**30
METADATA_KEY, DIGEST_KEY = "mapolicy", "sha256"
COUNTERS = frozenset({"step", "lookahead_step"})  # that timm's Adan, LAMB and Lookahead keep beside their parameters
GROUP = "group"
NO_DIGEST = "0" * 64  # stands where the digest of the whole file goes


@dataclass
class RunState:
    """Everything that moves during a run. Randomness is not part of it: it follows from the iteration's number.

    Attributes:
        modules: networks by name.
        optimizers: by name.
        sampler: where one is learned.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    sampler: Sampler | None = None

    def tensors(self) -> dict[str, Tensor]:
        """A copy of the state on the CPU, by dotted name."""
        found: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            found |= {f"module.{name}.{key}": tensor for key, tensor in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            whole = optimizer.state_dict()
            for index, values in whole["state"].items():
                entries = {key: value for key, value in values.items() if value is not None}
                found |= {f"optimizer.{name}.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
            for index, group in enumerate(whole["param_groups"]):
                counts = {key: group[key] for key in COUNTERS & group.keys()}
                found |= {f"optimizer.{name}.{GROUP}{index}.{key}": torch.as_tensor(n) for key, n in counts.items()}
        if self.sampler is not None:
            found |= {f"sampler.{key}": tensor for key, tensor in self.sampler.state().items()}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor], iteration: int) -> None:
        """Put back what `tensors` returned after `iteration` iterations.

        Raises:
            InputError: the tensors are those of another network or optimiser.
        """
        try:
            for name, module in self.modules.items():
                module.load_state_dict(_below(tensors, f"module.{name}."))
            for name, optimizer in self.optimizers.items():
                values: dict[int, dict[str, Tensor]] = {}
                now = optimizer.state_dict()["param_groups"]
                groups: list[dict[str, Any]] = [{key: group[key] for key in group.keys() - COUNTERS} for group in now]
                for key, tensor in _below(tensors, f"optimizer.{name}.").items():
                    index, _, entry = key.partition(".")
                    if index.startswith(GROUP):
                        whole = not tensor.is_floating_point()
                        groups[int(index.removeprefix(GROUP))][entry] = int(tensor) if whole else tensor
                    else:
                        values.setdefault(int(index), {})[entry] = tensor
                optimizer.load_state_dict({"state": values, "param_groups": groups})
                _lay_out(optimizer)
            if self.sampler is not None:
                self.sampler.restore(_below(tensors, "sampler."), iteration)
        except (KeyError, IndexError, RuntimeError, ValueError) as problem:
            raise InputError("checkpoint", str(problem).split("\n")[0], "start the run again with --force") from None


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], previous: Path | None = None
) -> None:
    """Write the state and JSON-able facts about it; the old file stands until the new one is whole.

    Args:
        path: the file.
        tensors: by name.
        facts: JSON-able.
        previous: name that the old file then gets.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    metadata = {METADATA_KEY: json.dumps(facts, sort_keys=True), DIGEST_KEY: NO_DIGEST}
    content = bytearray(save(dict(tensors), metadata=metadata))
    place = content.index(NO_DIGEST.encode())
    content[place : place + len(NO_DIGEST)] = hashlib.sha256(content).hexdigest().encode()
    write_atomically(path, content, previous)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a checkpoint.

    Raises:
        InputError: missing, damaged, or no checkpoint of ours.
    """
    content = read_regular_file(path, LARGEST_CHECKPOINT)
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"][METADATA_KEY])
        if not isinstance(facts, dict):
            raise ValueError(f"its facts are a {type(facts).__name__}")
        if DIGEST_KEY not in header["__metadata__"]:
            raise ValueError("it has no digest, so it is no run's")
        written = header["__metadata__"][DIGEST_KEY]
        before, after = content.split(written.encode(), 1)
        found = hashlib.sha256(before)
        found.update(NO_DIGEST.encode())
        found.update(after)
        if found.hexdigest() != written:
            raise ValueError("its digest is another than when it was written")
    except (SafetensorError, KeyError, TypeError, ValueError) as problem:
        reason = str(problem).split("\n")[0]
        raise InputError(str(path), f"no whole checkpoint ({reason})", "start the run again with --force") from None
    return tensors, facts


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give the state its parameters' order in memory, as it had: kernels round differently where orders are mixed."""
    for parameter, values in getattr(optimizer, "_base_optimizer", optimizer).state.items():  # Lookahead's
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
