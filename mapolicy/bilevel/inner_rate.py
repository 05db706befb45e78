"""The learnable inner rate alpha of Eq. 2."""

import torch
from torch import Tensor, nn


class InnerRate(nn.Module):
    """The learnable inner rate alpha of Eq. 2, kept positive as the exponential of what is learned.

    Args:
        initial: alpha at the start.
        tensors: None for one alpha of all parameters, or the number of parameter tensors for one of each.
    """

    def __init__(self, initial: float, tensors: int | None = None) -> None:
        super().__init__()
        shape = () if tensors is None else (tensors,)
        self.log_alpha = nn.Parameter(torch.full(shape, initial).log())

    def forward(self) -> Tensor:
        """Alpha, float [] or [tensors]."""
        return self.log_alpha.exp()
