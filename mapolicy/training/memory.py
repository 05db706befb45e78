"""Out of memory, reported as one error."""

import torch

from ..config import RunConfig
from ..errors import TrainingError


def out_of_memory(problem: BaseException, config: RunConfig, iteration: int) -> TrainingError | None:
    """Torch's two ways of saying that memory has run out, as one of ours; None for another problem."""
    cuda = isinstance(problem, torch.OutOfMemoryError)
    if not cuda and not (isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)):
        return None
    where = "the GPU" if cuda else "the machine"
    flags = "raise accumulate, set low_memory=true, or lower batch_size, validation_batch_size or copies"
    return TrainingError(
        f"iteration {iteration + 1}", f"{where} is out of memory at batch_size {config.batch_size}", flags
    )
