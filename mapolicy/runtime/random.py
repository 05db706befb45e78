"""Counter-based randomness: every draw comes from a generator seeded by (seed, stage, stream, step).

There is no hidden state to save: a run goes on from its step number alone, and a new stream never moves the others.
"""

import hashlib

import torch


def seed_for(seed: int, stage: str, stream: str, step: int) -> int:
    """A 63-bit seed for one draw: SHA-256 of (seed, stage, stream, step)."""
    digest = hashlib.sha256(f"{seed}/{stage}/{stream}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, stage: str, stream: str, step: int) -> torch.Generator:
    """A CPU generator for one draw. Draws are made on the CPU so that they do not depend on the device."""
    return torch.Generator().manual_seed(seed_for(seed, stage, stream, step))
