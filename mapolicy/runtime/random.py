"""Counter-based randomness: every draw has its own generator, seeded by (seed, stage, stream, step).

There is no generator state to save: the step number is enough to resume a run, and a new stream never changes the draws
of another.
"""

import hashlib

import torch


def seed_for(seed: int, stage: str, stream: str, step: int) -> int:
    """A 63-bit seed for one draw, from the SHA-256 of its four arguments."""
    digest = hashlib.sha256(f"{seed}/{stage}/{stream}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, stage: str, stream: str, step: int) -> torch.Generator:
    """A generator for one draw; on the CPU, so that the draw does not depend on the run's device.

    Args:
        seed: the run's seed.
        stage: `search` or `train`.
        stream: what is drawn, such as `order`.
        step: epoch, iteration or another counter.
    """
    return torch.Generator().manual_seed(seed_for(seed, stage, stream, step))
