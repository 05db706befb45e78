"""The textbook bilevel step by autograd through the virtual step (Eq. 2): the reference for results and for time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..bilevel.inner_rate import InnerRate
from ..bilevel.options import StepOptions
from ..bilevel.weighted_step import weighted_step
from ..models.features import features_and_logits, running_statistics_kept
from ..policy.network import PolicyNetwork, normalise_weights


@dataclass(frozen=True)
class DoubleBackwardStep:
    """`BilevelStep` by second derivatives, with the same arguments and the same updates of theta, alpha and w.

    The inner gradient keeps its graph (create_graph=True), and the validation loss is differentiated through it with
    respect to theta and alpha. The weighted step needs a second forward, because that graph is freed by then.
    Source: MetaAugment (Zhou et al., AAAI 2021), Eq. 2 to 4; MAML and DARTS differentiate in the same way.

    Args:
        network, policy, rate, optimizer, policy_optimizer: as in `BilevelStep`.
        options: as in `BilevelStep`; only clip_norm is used.
    """

    network: nn.Module
    policy: PolicyNetwork
    rate: InnerRate
    optimizer: torch.optim.Optimizer
    policy_optimizer: torch.optim.Optimizer
    options: StepOptions

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        embedding: Tensor,
        validation: tuple[Tensor, Tensor],
        noise_seed: int,
    ) -> Tensor:
        """Update theta, alpha and w; arguments as in `BilevelStep`.

        Returns:
            The weighted training loss, float [], detached.
        """
        network = self.network.train()
        parameters = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}
        torch.manual_seed(noise_seed)
        features, logits = features_and_logits(network, images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        weights = normalise_weights(self.policy(features, embedding))
        gradients = torch.autograd.grad((weights * losses).sum(), list(parameters.values()), create_graph=True)
        rates = self.rate().expand(len(parameters))
        moved = {
            name: tensor - rate * gradient
            for (name, tensor), rate, gradient in zip(parameters.items(), rates, gradients, strict=True)
        }
        torch.manual_seed(noise_seed + 1)
        with running_statistics_kept(network):
            logits = functional_call(network, moved, (validation[0],))
        self.policy_optimizer.zero_grad()
        learned = [*self.policy.parameters(), *self.rate.parameters()]
        torch.autograd.backward(F.cross_entropy(logits, validation[1]), inputs=learned)
        self.policy_optimizer.step()

        with torch.no_grad():
            new_weights = normalise_weights(self.policy(features, embedding))
        torch.manual_seed(noise_seed)
        with running_statistics_kept(network):
            losses = F.cross_entropy(network(images), labels, reduction="none")
        return weighted_step([losses], [new_weights], network, self.optimizer, self.options.clip_norm)
