"""In which precision the task network computes: parameters, sums, weights and updates stay in single precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Within it a network's products are computed in this precision: "float32" leaves everything as it is."""
    if precision not in HALF_TYPES:
        return nullcontext()
    return torch.autocast(device.type, HALF_TYPES[precision])


def at_least_float32(tensor: Tensor) -> Tensor:
    """In single precision if it was in half; the tensor itself otherwise."""
    return tensor.float() if tensor.dtype in HALF_TYPES.values() else tensor
