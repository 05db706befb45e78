"""The bilevel step: virtual step (Eq. 2), hypergradient (Eq. 3), weighted step (Eq. 4) of MetaAugment.

Eq. 2 and Eq. 4 need the forward of the same batch at the same w, so its graph is kept: the weighted step needs no
forward of its own, and the forward-mode pass of the hypergradient takes its values from the graph. If both steps have
the same weights (`simultaneous`, or `weighting = "equal"`), they also share one backward.

A batch may be divided over processes, and each process's shard into `accumulate` micro-batches, one after the other.
Sums over the batch in Eq. 2 and 3 then run over all of them, and per-sample numbers are gathered, so that every process
has the weights of the whole batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..distributed import ALONE, Communicator
from ..errors import UsageError
from ..models.features import deep_features, running_statistics, running_statistics_kept
from ..models.noise import has_unequal_noise, noise_at_its_mean
from ..policy.network import PolicyNetwork, normalise_weights, reject_below_mean, weights_of_slopes
from ..runtime.freed_memory import freed_memory_returned
from ..runtime.precision import at_least_float32
from .forward_mode import Recording, agrees_with_torch
from .hypergradients import Hypergradient, hypergradient_along, weighted_gradient
from .inner_rate import InnerRate
from .microbatch import Batch, FirstPass, first_pass, joined, losses_of_each, share_of
from .network_losses import NetworkLosses
from .options import StepOptions
from .sample_loss import SampleLoss, cross_entropy
from .weighted_step import reduce_gradients, update, weighted_loss, weighted_step

Validation = list[tuple[Tensor, Tensor]]  # meta-validation images and labels of each micro-batch


@dataclass(frozen=True)
class StepRecord:
    """What one bilevel step did; tensors are detached. n counts the samples of the whole batch, in all processes.

    Attributes:
        loss: float [], the weighted training loss.
        raw: float [n], the outputs, before normalisation, of the policy that the weighted step used; None if equal
            weights did not need them.
        weights: float [n], as used in the weighted step; sum 1.
        alpha: float [] or [tensors], after its update.
        hypergradient: of the weights before theta's update; None if this iteration took none.
        rows: int64 [m], positions in the whole batch of the samples that the hypergradient's m weights belong to.
        theta_gradient: float [policy's parameters], of the validation loss with respect to theta (Eq. 3); None without
            a hypergradient, and where theta is not learned.
        losses: float, the training losses of this process's samples in the weighted step; None where it took none.
    """

    loss: Tensor
    raw: Tensor | None
    weights: Tensor
    alpha: Tensor
    hypergradient: Hypergradient | None
    rows: Tensor | None
    theta_gradient: Tensor | None
    losses: Tensor | None = None


@dataclass(frozen=True)
class _Learned:
    """The hypergradient that theta and alpha were updated by; float [n] raw outputs and weights before the update."""

    hypergradient: Hypergradient
    raw: Tensor
    weights: Tensor

    @property
    def is_finite(self) -> bool:
        return bool(self.hypergradient.validation_loss.isfinite())


class BilevelStep:
    """One iteration of Algorithm 1 of MetaAugment after the batch has been augmented.

    Source: Zhou et al., AAAI 2021, Eq. 2 to 4. A network whose noise differs between forward and backward has no true
    gradient: its hypergradient is that of the network with this noise at its mean, its weighted step is its own.

    With `weighting = "equal"` both steps have equal weights. Theta keeps learning, from the derivatives at these
    weights: dL_val/dtheta = sum_i dL_val/dP_i dP_i/dtheta.

    With `weighting = "reweight"` the step is that of Ren et al. (ICML 2018): s_i = < alpha v, grad L_i(w) > with v the
    gradient of the validation loss at w itself, and weights max(0, s_i) over their sum. Theta and alpha stay.

    Attributes:
        how: how the step is executed, in words, for the run's record.
        own_rules: whether our forward-mode rules are right for this network; None before the first batch.
        noise_at_mean: whether the hypergradient is computed with the network's noise at its mean.

    Args:
        network: the task network, a timm model.
        policy: the policy network, theta.
        rate: the inner rate, alpha.
        optimizer: of the task network's parameters (Eq. 4).
        policy_optimizer: of theta and alpha (Eq. 3).
        options: how the step is computed.
        extractor: a timm model whose features the policy reads and whose parameters are part of theta (the paper's
            ablation); None takes the task network's features.
        communicator: to the processes that have the other shards of the batch. All compute the same theta, alpha and w.
        training_loss: of one training sample.
        validation_loss: of one meta-validation sample; its mean is the outer objective.

    Raises:
        UsageError: a simultaneous step for a network whose noise must be at its mean; an extractor that is trained
            together with micro-batches, since it would keep all their graphs.
    """

    def __init__(
        self,
        network: nn.Module,
        policy: PolicyNetwork,
        rate: InnerRate,
        optimizer: torch.optim.Optimizer,
        policy_optimizer: torch.optim.Optimizer,
        options: StepOptions | None = None,
        extractor: nn.Module | None = None,
        communicator: Communicator = ALONE,
        training_loss: SampleLoss = cross_entropy,
        validation_loss: SampleLoss = cross_entropy,
    ) -> None:
        self.network, self.policy, self.rate = network, policy, rate
        self.optimizer, self.policy_optimizer = optimizer, policy_optimizer
        self.options = options or StepOptions()
        self.extractor, self.communicator = extractor, communicator
        self.losses = NetworkLosses(network, self.options, communicator, training_loss, validation_loss)
        self.own_rules: bool | None = None
        self.how = "not compiled"
        self.noise_at_mean = has_unequal_noise(network)
        if self.noise_at_mean and self.options.simultaneous:
            why = "the virtual step has the noise of Shake-Shake or ShakeDrop at its mean, the weighted step has not"
            raise UsageError("simultaneous", why, "leave it out for this network")
        if extractor is not None and self.options.accumulate > 1:
            why = "an extractor that is trained with theta would keep the graphs of all micro-batches"
            raise UsageError("accumulate", why, "set accumulate=1 or extractor=shared")

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        embedding: Tensor,
        validation: tuple[Tensor, Tensor] | None,
        noise_seed: int,
        features: Tensor | None = None,
    ) -> StepRecord:
        """Update theta, alpha and w; nothing is updated if a loss is not finite.

        Args:
            images: float [n, C, H, W], augmented and normalised; n counts all copies, of this process's shard.
            labels: int64 [n].
            embedding: float [n, 2K], of the images' transformations.
            validation: images float [m, C, H, W], normalised, and labels int64 [m]; None does not update theta and
                alpha.
            noise_seed: seeds torch's global generators for the network's noise (dropout, stochastic depth), so that the
                forward-mode pass replays the forward's noise.
            features: float [n, F] of a frozen extractor; None takes the network's own.
        """
        for module in self._learners:
            module.train()
        batch = Batch(images, labels, embedding, features, noise_seed)
        frugal = self.options.low_memory and images.device.type == "cpu"
        # Only the math backend of attention has a forward-mode derivative; all passes must draw the same noise.
        attention = nullcontext() if validation is None else sdpa_kernel(SDPBackend.MATH)
        with freed_memory_returned() if frugal else nullcontext(), attention:
            record = self._step(batch, validation)
            self.communicator.average([buffer for module in self._learners for buffer in running_statistics(module)])
        return record

    def _step(self, batch: Batch, validation: tuple[Tensor, Tensor] | None) -> StepRecord:
        """Choose the strategy for this batch, one of the methods below."""
        batches = batch.divided(self.options.accumulate, self.communicator.rank)
        if validation is None:
            return self._without_hypergradient(batches)
        held_out = list(zip(*(half.chunk(len(batches)) for half in validation), strict=True))
        if self.options.reweights:
            return self._reweighted(batches, held_out)
        if not self._keeps_graph:
            with noise_at_its_mean(*self._learners):
                self._check_rules(batches[0], None)  # while no graph needs memory
        if self.noise_at_mean or self.options.fraction < 1:
            return self._by_forwards_of_its_own(batches, held_out)
        if self.options.simultaneous or self.options.equal_weights:
            return self._with_one_gradient(batches, held_out)
        return self._in_turn(batches, held_out)

    def _in_turn(self, batches: list[Batch], held_out: Validation) -> StepRecord:
        """The paper's order: theta first, then w with the new theta's weights. The graph is kept, or computed again."""
        first = self._first_pass(batches, self._records)
        learned = self._learn(first, held_out, self._keeps_graph)
        first = replace(first, statistics_moved=True)
        return self._weighted_step(first, learned, graph_is_free=not self._keeps_graph)

    def _with_one_gradient(self, batches: list[Batch], held_out: Validation) -> StepRecord:
        """The virtual step's gradient is the weighted step's too: the weights are the old theta's, or equal."""
        first = self._first_pass(batches, self._records)
        seen: list[Tensor] = []
        learned = self._learn(first, held_out, keep_graph=False, seen=seen)
        own = first.split(self.communicator.shard(len(learned.weights)).of(learned.weights))
        loss = learned.hypergradient.validation_loss
        if learned.is_finite:
            gradients = learned.hypergradient.gradient
            for parameter, gradient in zip(self.losses.parameters().values(), gradients, strict=True):
                parameter.grad = gradient.clone()  # a copy, because clipping changes it
            (loss,) = self.communicator.sum([weighted_loss(seen, own)])
            update(self.network, self.optimizer, self.options.clip_norm, loss)
        return self._record(loss, learned.raw, learned.weights, learned, first, seen)

    def _by_forwards_of_its_own(self, batches: list[Batch], held_out: Validation) -> StepRecord:
        """The hypergradient on a fraction of the batch or with the noise at its mean; then a weighted step apart."""
        some = [batch.first(self.options.fraction) for batch in batches]
        count = share_of(len(held_out[0][1]), self.options.fraction)
        few = [(images[:count], labels[:count]) for images, labels in held_out]
        with running_statistics_kept(self.network), noise_at_its_mean(*self._learners):
            part = self._first_pass(some, self._records and self.options.fraction == 1)
            learned = self._learn(part, few, keep_graph=False)
        del part
        first = self._pass_for_weights(batches)
        return self._weighted_step(first, learned)

    def _reweighted(self, batches: list[Batch], held_out: Validation) -> StepRecord:
        """The step of Ren et al.: each sample's weight is how much its gradient lowers the validation loss at w.

        Their virtual step has weights 0, so w_hat is w: the weights' derivatives there are -s_i.
        """
        apart = self.noise_at_mean or not self._keeps_graph
        parameters, communicator = self.losses.parameters(), self.communicator
        first = FirstPass(batches, torch.empty(0), None, None, statistics_moved=False)
        if not apart:
            first = first_pass(self.losses.forward, batches, self._records)
        with ExitStack() as stack:
            stack.enter_context(running_statistics_kept(self.network))
            if self.noise_at_mean:
                stack.enter_context(noise_at_its_mean(*self._learners))
            self._check_rules(batches[0], first.recording)
            outcome = hypergradient_along(
                parameters,
                [torch.zeros_like(tensor) for tensor in parameters.values()],
                self.rate().detach(),
                [self.losses.of_training(batch) for batch in batches],
                [
                    self.losses.of_validation(batch.noise_seed, *half)
                    for batch, half in zip(batches, held_out, strict=True)
                ],
                recording=first.recording,
                own_rules=bool(self.own_rules),
                communicator=communicator,
            )
        weights = weights_of_slopes(-outcome.weights)
        own = first.split(communicator.shard(len(weights)).of(weights))
        seen: list[Tensor] = []
        loss = outcome.validation_loss
        if loss.isfinite():
            losses = _noted(self._losses(first, graph_is_free=False), seen)
            options = self.options
            loss = weighted_step(losses, own, self.network, self.optimizer, options.clip_norm, communicator)
        rows = self._rows(batches, len(weights))
        values = torch.cat(seen) if seen else None
        return StepRecord(loss, None, weights, self.rate().detach(), outcome, rows, None, values)

    def _without_hypergradient(self, batches: list[Batch]) -> StepRecord:
        """The weighted step only; theta and alpha are not updated."""
        return self._weighted_step(self._pass_for_weights(batches), None)

    def _pass_for_weights(self, batches: list[Batch]) -> FirstPass:
        """The first pass of a weighted step; with equal weights, micro-batches need none."""
        if self.options.equal_weights and len(batches) > 1:
            return FirstPass(batches, torch.empty(0), None, None, statistics_moved=False)
        return self._first_pass(batches)

    def _first_pass(self, batches: list[Batch], records: bool = False) -> FirstPass:
        return first_pass(self.losses.forward, batches, records, with_losses=self.policy.sees_loss)

    def _weighted_step(self, first: FirstPass, learned: _Learned | None, graph_is_free: bool = False) -> StepRecord:
        """Eq. 4 with the present theta's weights.

        Args:
            first: the pass over the batch.
            learned: the hypergradient that has just updated theta.
            graph_is_free: the graph of `first` is freed, so it is computed again.
        """
        options, communicator = self.options, self.communicator
        raw = None
        with torch.no_grad():
            if options.equal_weights:
                whole = communicator.size * sum(len(batch) for batch in first.batches)
                weights = first.batches[0].images.new_full((whole,), 1 / whole)
            else:
                raw = communicator.gather(self._raw(first))
                weights = normalise_weights(raw)
                if options.reject_below_mean:
                    weights = reject_below_mean(weights)
        own = first.split(communicator.shard(len(weights)).of(weights))
        seen: list[Tensor] = []
        if learned is not None and not learned.is_finite:
            loss = learned.hypergradient.validation_loss  # theta was not updated, so w is not either
        else:
            losses = _noted(self._losses(first, graph_is_free), seen)
            loss = weighted_step(losses, own, self.network, self.optimizer, options.clip_norm, communicator)
        return self._record(loss, raw, weights, learned, first, seen)

    def _losses(self, first: FirstPass, graph_is_free: bool) -> Iterable[Tensor]:
        """The losses of each micro-batch, float [n] with their graph."""
        if first.losses is not None and not graph_is_free:
            return [first.losses]
        return losses_of_each(self.network, self.losses.forward, first.batches, first.statistics_moved)

    def _record(
        self,
        loss: Tensor,
        raw: Tensor | None,
        weights: Tensor,
        learned: _Learned | None,
        first: FirstPass,
        seen: Sequence[Tensor],
    ) -> StepRecord:
        losses = torch.cat([*seen]) if seen else None
        if learned is None:
            return StepRecord(loss, raw, weights, self.rate().detach(), None, None, None, losses)
        gradients = (parameter.grad for parameter in self.policy.parameters())
        by_theta = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        rows = self._rows(first.batches, len(learned.hypergradient.weights))
        return StepRecord(loss, raw, weights, self.rate().detach(), learned.hypergradient, rows, by_theta, losses)

    def _rows(self, batches: Sequence[Batch], count: int) -> Tensor:
        """Positions in the whole batch of the `count` samples of a hypergradient, int64 [count]."""
        size, pieces = len(batches[0]), len(batches) * self.communicator.size
        each = torch.arange(count // pieces)
        return (torch.arange(pieces)[:, None] * size + each).flatten().to(batches[0].images.device)

    @property
    def _learners(self) -> list[nn.Module]:
        """The networks with noise and statistics."""
        return [module for module in (self.network, self.extractor) if module is not None]

    @property
    def _keeps_graph(self) -> bool:
        """Whether the virtual and the weighted step share the batch's graph."""
        return self.options.accumulate == 1 and not self.options.low_memory

    @property
    def _records(self) -> bool:
        """Whether the forward is recorded for the forward-mode pass, whose rules support a single dtype."""
        return self._keeps_graph and self.options.precision == "float32"

    def _raw(self, first: FirstPass) -> Tensor:
        """The policy's outputs before normalisation, float [n], of this process's samples."""
        own = first.features
        if self.extractor is not None:
            images = joined(first.batches, "images")
            with self.losses.computing(images):
                own = deep_features(self.extractor, images)
            own = at_least_float32(own)
        raw: Tensor = self.policy(own, joined(first.batches, "embedding"), first.values)
        return raw

    def _learn(
        self, first: FirstPass, held_out: Validation, keep_graph: bool, seen: list[Tensor] | None = None
    ) -> _Learned:
        """Update theta and alpha (Eq. 2 and 3); afterwards the running statistics are updated too.

        Args:
            first: the pass over the batch.
            held_out: the meta-validation batch.
            keep_graph: whether the graph of `first` is needed once more.
            seen: gets the training losses of each micro-batch, detached.
        """
        parameters, communicator = self.losses.parameters(), self.communicator
        raw, alpha = communicator.gather(self._raw(first)), self.rate()
        weights = normalise_weights(raw)
        used = torch.full_like(weights, 1 / len(weights)) if self.options.equal_weights else weights.detach()
        own = first.split(communicator.shard(len(weights)).of(used))
        self._check_rules(first.batches[0], first.recording)
        losses = _noted(self._losses(first, graph_is_free=False), seen)
        gradients = weighted_gradient(losses, own, list(parameters.values()), keep_graph)
        with running_statistics_kept(self.network):
            outcome = hypergradient_along(
                parameters,
                communicator.sum(gradients),
                alpha,
                [self.losses.of_training(batch) for batch in first.batches],
                [
                    self.losses.of_validation(batch.noise_seed, *half)
                    for batch, half in zip(first.batches, held_out, strict=True)
                ],
                recording=first.recording,
                own_rules=bool(self.own_rules),
                communicator=communicator,
            )
        self.policy_optimizer.zero_grad()
        torch.autograd.backward([weights, alpha], [outcome.weights, outcome.alpha])
        reduce_gradients(self._theta(), communicator)  # alpha's gradient is complete already
        if outcome.validation_loss.isfinite():
            self.policy_optimizer.step()
        return _Learned(outcome, raw.detach(), used)

    def _theta(self) -> list[nn.Parameter]:
        return [*self.policy.parameters(), *([] if self.extractor is None else self.extractor.parameters())]

    def _check_rules(self, batch: Batch, recording: Recording | None) -> None:
        """Test once whether our forward-mode rules are right for this network."""
        if self.options.precision != "float32":
            self.own_rules = False
        if self.own_rules is None:
            with running_statistics_kept(self.network):
                agrees = agrees_with_torch(self.losses.of_training(batch), self.losses.parameters(), recording)
            self.own_rules = not self.communicator.largest(not agrees)[0]  # the same decision in all processes


def _noted(losses: Iterable[Tensor], seen: list[Tensor] | None) -> Iterator[Tensor]:
    """The same losses; what has passed is added to `seen`, detached."""
    for each in losses:
        if seen is not None:
            seen.append(each.detach())
        yield each
        del each  # so that its graph does not live while the next one is computed
