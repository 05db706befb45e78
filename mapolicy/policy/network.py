"""The policy network: the weight of an augmented sample's loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.choices import LOSS, POLICY_INPUTS
from ..errors import UsageError
from ..transforms.space import EMBEDDING_WIDTH

HIDDEN_UNITS = 100
SATURATED = 1e-30  # float32's normal numbers end at 1.2e-38
ROUNDING = 1e-6  # relative; equal weights may lie below their own mean by rounding


class PolicyNetwork(nn.Module):
    """Two small branches, one for the image's deep feature and one for its transformation's embedding, and a sigmoid.

    Source: MetaAugment (Zhou et al., AAAI 2021), section "Policy network". 67,201 parameters for 640-d features.
    The last layer starts at zero, so that every sample starts with the same weight. With `policy_input` "loss" there is
    one branch, for the sample's training loss: Meta-Weight-Net (Shu et al., NeurIPS 2019), 301 parameters.

    Args:
        feature_width: width of the deep feature.
        embedding_width: 2K.
        hidden: units of each branch.
        policy_input: "both", or "features" or "embedding" alone (the paper's ablations), or "loss".

    Attributes:
        sees_loss: whether the input is the sample's training loss.
    """

    def __init__(
        self,
        feature_width: int,
        embedding_width: int = EMBEDDING_WIDTH,
        hidden: int = HIDDEN_UNITS,
        policy_input: str = "both",
    ) -> None:
        super().__init__()
        if policy_input not in POLICY_INPUTS:
            raise ValueError(f"policy_input {policy_input!r} is not one of {', '.join(POLICY_INPUTS)}")
        self.sees_loss = policy_input == LOSS
        self.feature_layer = nn.Linear(feature_width, hidden) if policy_input in ("both", "features") else None
        self.embedding_layer = nn.Linear(embedding_width, hidden) if policy_input in ("both", "embedding") else None
        self.loss_layer = nn.Linear(1, hidden) if self.sees_loss else None
        branches = [layer for layer in (self.feature_layer, self.embedding_layer, self.loss_layer) if layer is not None]
        self.output = nn.Linear(hidden * len(branches), 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor, embedding: Tensor, losses: Tensor | None = None) -> Tensor:
        """The raw policy outputs, float [B] in (0, 1).

        Args:
            features: float [B, feature_width].
            embedding: float [B, embedding_width].
            losses: float [B], training losses without a graph; read by a policy that sees them.

        Raises:
            UsageError: the policy sees losses, and there are none.
        """
        return torch.sigmoid(self.logits(features, embedding, losses))

    def logits(self, features: Tensor, embedding: Tensor, losses: Tensor | None = None) -> Tensor:
        """The sigmoid's arguments, float [B]; arguments as for `forward`."""
        branches = []
        if self.feature_layer is not None:
            branches.append(F.relu(self.feature_layer(features)))
        if self.embedding_layer is not None:
            branches.append(F.relu(self.embedding_layer(embedding)))
        if self.loss_layer is not None:
            if losses is None:
                why = "the policy weighs a sample by its training loss, which only the network being trained has"
                raise UsageError(f"policy_input {LOSS}", why, "use --mode finetune, or --policy sampler-only")
            branches.append(F.relu(self.loss_layer(losses[:, None])))
        logits: Tensor = self.output(torch.cat(branches, dim=1)).squeeze(1)
        return logits


def normalise_weights(raw: Tensor) -> Tensor:
    """Raw policy outputs [B] divided by their sum over the batch: the weights P_i of Eq. 2 and 4, which sum to 1."""
    return raw / raw.sum()


def weights_of_logits(logits: Tensor) -> Tensor:
    """The weights P_i of Eq. 4 for a frozen policy, float [B] with sum 1: finite for all finite logits [B].

    They are `normalise_weights(sigmoid(logits))` to the bit, unless all of these sigmoids are below `SATURATED`. In
    float32 a sigmoid becomes 0 at -104, and the quotients 0 / 0. There sigmoid(x) equals exp(x) to float32 precision,
    so the softmax of the logits gives the same quotients without underflow.
    """
    raw = torch.sigmoid(logits)
    # torch.where instead of an if: on a GPU an if waits for the result.
    return torch.where(raw.amax() < SATURATED, torch.softmax(logits, 0), normalise_weights(raw))


def weights_of_slopes(slopes: Tensor) -> Tensor:
    """The weights of Ren et al. for s_i float [B]: max(0, s_i) over their sum; all 0 where no s_i is positive.

    Source: Ren, Zeng, Yang and Urtasun, "Learning to Reweight Examples for Robust Deep Learning" (ICML 2018), Eq. 7.
    """
    kept = slopes.clamp(min=0)
    total = kept.sum()
    return torch.where(total > 0, kept / torch.where(total > 0, total, torch.ones_like(total)), torch.zeros_like(kept))


def limited(weights: Tensor, limit: float) -> Tensor:
    """Weights [B] with sum 1, each kept within a factor `limit` of the batch's mean, then normalised again.

    A weight spread of c leaves 1 / (1 + c^2) of a batch; the limit bounds what single samples can cost or gain.
    """
    mean = 1 / len(weights)
    kept = weights.clamp(mean / limit, mean * limit)
    return kept / kept.sum()


def reject_below_mean(weights: Tensor) -> Tensor:
    """Set weights [B] below the mean to 0 and the others to one value, so that the sum is 1.

    Source: MetaAugment's ablation (Zhou et al., AAAI 2021), which rejects instead of reweighting.
    """
    kept = (weights >= weights.mean() * (1 - ROUNDING)).to(weights.dtype)
    return kept / kept.sum()
