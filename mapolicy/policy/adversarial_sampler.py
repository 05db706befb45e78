"""The adversarial sampler: draws what raises the training loss more often.

Source: Adversarial AutoAugment (Zhang, Wang, Zhang and Zhong, ICLR 2020). Its policy network draws operations and
levels, every image of a batch is augmented in M = 8 ways, and the reward of a way is the training loss of the samples
that it augmented, as a moving average, normalised over the M ways. The policy network ascends the reward by policy
gradient with an entropy term. These lines follow the paper's abstract and the unofficial implementation named below;
its full text was not read. No held-out image and no hypergradient are needed: the losses are those of the step.

What is ours:

- A table takes the place of the LSTM: q(o, b) = softmax(phi) for operation o and level bin b, the cells that the
  alignment sampler draws from. Both positions of a transformation are drawn from it independently.
- Every sample has a transformation of its own. So losses are normalised over the copies of the same image (over the
  batch where there is one copy), and the moving average is that of a cell's samples. It gives the policy gradient
  without sampling noise: d/dphi of sum_c q_c r_c + entropy_weight * H(q). Its fixed point is q_c ~ exp(r_c /
  entropy_weight).
- phi is updated in every iteration, the LSTM once an epoch. An unofficial implementation
  (github.com/SeongwoongCho/adversarial-autoaugment-pytorch) has Adam at a rate of 0.00035 and an entropy weight of
  0.00001. A table without a network in between needs larger ones, and the defaults are ours.
"""

import torch
from torch import Tensor

from ..transforms.space import OperationSpace
from .level_sampler import LOWEST, LevelSampler
from .sampler import Observation

MEMORY = 20.0  # observed iterations that a cell's reward averages
LARGEST_REWARD = 3.0  # standard deviations; limits the influence of a single image


class AdversarialSampler(LevelSampler):
    """Learns a distribution over operations and signed levels from training losses; both positions are drawn from it.

    Args:
        space: the operations.
        bins: level bins of each direction.
        rate: of Adam on phi; 0 always draws as it started.
        entropy: weight of the entropy of q.
        copies: of every image in a batch, side by side; their losses are normalised together.
        iterations: of the whole run, which `STAGES` equal shares record.
        start: float [K, 2 * bins]: `log_levels` at the end of another run; None starts uniform.

    Attributes:
        needs_hypergradient: it learns without one.
        needs_losses: it learns from the training losses.
    """

    needs_hypergradient = False
    needs_losses = True
    moving = (*LevelSampler.moving, "adam", "updates", "rewards", "known")

    def __init__(
        self,
        space: OperationSpace,
        bins: int = 4,
        rate: float = 0.01,
        entropy: float = 0.1,
        copies: int = 1,
        iterations: int = 600,
        start: Tensor | None = None,
    ) -> None:
        super().__init__(space, bins, iterations, start)
        self.rate, self.entropy, self.copies = rate, entropy, copies
        groups = self.grid.groups
        self._adam = torch.zeros(2, groups, dtype=torch.float64)  # moments
        self._updates = torch.zeros((), dtype=torch.int64)
        self._rewards = torch.zeros(groups, dtype=torch.float64)
        self._known = torch.zeros(groups, dtype=torch.bool)

    def table(self, phi: Tensor) -> Tensor:
        """Phi less its largest value: the same draws, and at most 0."""
        return (phi - phi.max()).clamp(LOWEST, 0)[self.grid.group]

    @property
    def rewards(self) -> Tensor:
        """r, the moving average of the normalised losses, float64 [K, 2 * bins]; 0 for a cell without a sample."""
        return self._rewards[self.grid.group]

    def learn(self, observation: Observation) -> None:
        """Update q by the training losses of an iteration."""
        if observation.losses is not None:
            self._learn(observation.code.cpu(), observation.losses.detach().double().cpu())

    def _learn(self, code: Tensor, losses: Tensor) -> None:
        if not bool(losses.isfinite().all()):
            return  # the step will be rejected
        rows = losses.reshape(-1, self.copies) if self.copies > 1 else losses[None]
        rewards = (rows - rows.mean(1, keepdim=True)).flatten()
        deviation = rewards.std(correction=0)
        if not bool(deviation > 1e-12 * losses.abs().mean()):
            return  # all losses are equal
        rewards = (rewards / deviation).clamp(-LARGEST_REWARD, LARGEST_REWARD)
        values = self.values_of(code)
        drawn = torch.bincount(values, minlength=self.grid.groups)
        sums = torch.zeros_like(self._rewards).index_add_(0, values, rewards.repeat(2))
        means, seen = sums / drawn.clamp(min=1), drawn > 0
        moved = torch.where(self._known, self._rewards.lerp(means, 1 / MEMORY), means)
        self._rewards = torch.where(seen, moved, self._rewards)
        self._known |= seen
        self._ascend()

    def _ascend(self) -> None:
        """A step of Adam (Kingma and Ba, ICLR 2015) on phi along the policy gradient and the entropy's."""
        q = self.cells.flatten()
        gain = self.rewards.flatten() - self.entropy * q.log()
        by_cell = q * (gain - (q * gain).sum())
        gradient = torch.zeros_like(self._phi).index_add_(0, self.grid.group.flatten(), by_cell)
        self._updates += 1
        self._adam[0].lerp_(gradient, 0.1)
        self._adam[1].lerp_(gradient**2, 0.001)
        first, second = (1 - decay ** float(self._updates) for decay in (0.9, 0.999))
        self._phi = self._phi + self.rate * (self._adam[0] / first) / ((self._adam[1] / second).sqrt() + 1e-8)

    def figures(self) -> dict[str, float]:
        """Figures for the bundle: entropy of the draws over a uniform draw's, and the largest share over a uniform."""
        q = self.cells.flatten()
        entropy = float(-torch.special.xlogy(q, q).sum()) / float(torch.tensor(q.numel()).log())
        return {"level_entropy": entropy, "largest_frequency": float(q.max()) * q.numel()}

    def warnings(self) -> list[str]:
        """What a user should know before trusting what was learned."""
        found = []
        if not bool(self._known.all()):
            found.append("some operations and levels were never drawn: search longer, or raise copies")
        if self.figures()["level_entropy"] < 0.5:
            found.append("the draws have collapsed on a few operations and levels: raise adversarial_entropy")
        return found
