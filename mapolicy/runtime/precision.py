"""Mixed precision of the task network; parameters, sums, weights and updates stay in float32."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """`torch.autocast` for `bfloat16` or `float16`; for `float32` a context that changes nothing."""
    if precision not in HALF_TYPES:
        return nullcontext()
    return torch.autocast(device.type, HALF_TYPES[precision])


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor as float32 if it is in half precision, else the tensor itself."""
    return tensor.float() if tensor.dtype in HALF_TYPES.values() else tensor
