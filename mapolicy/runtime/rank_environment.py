"""Rank and number of processes from the environment variables of torchrun and other launchers; imports no torch."""

import os


def processes() -> int:
    """Number of processes in the run (the world size); 1 without a launcher."""
    known = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if known else 1


def rank() -> int:
    """This process's rank among all, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def local_rank() -> int:
    """This process's rank among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if processes() > 1 else 0
