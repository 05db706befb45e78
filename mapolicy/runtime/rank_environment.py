"""What a launcher such as torchrun has told this process, by its environment; no torch."""

import os


def processes() -> int:
    """How many processes share the run; 1 without a launcher."""
    known = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if known else 1


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if processes() > 1 else 0
