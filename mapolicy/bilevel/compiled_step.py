"""The bilevel step as one function of tensors under `torch.compile`.

In one function, the virtual step, its hypergradient, the policy's update and the weighted gradient share their work:
the forward-mode pass takes its values from the forward, the weighted gradient its graph. The result equals
`BilevelStep`'s up to rounding. Only for networks without noise and for the paper's own algorithm.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jvp, vjp
from torch.optim import AdamW

from ..errors import EnvironmentFault
from ..models.features import feature_maps, head
from ..policy.network import PolicyNetwork, normalise_weights
from .bilevel_step import BilevelStep, StepRecord
from .common_subexpressions import merging_pass
from .forward_mode import load_rules
from .hypergradients import Hypergradient
from .microbatch import Batch
from .network_losses import NetworkLosses
from .options import StepOptions
from .sample_loss import SampleLoss
from .weighted_step import update

Tensors = dict[str, Tensor]


class CompiledStep(BilevelStep):
    """A `BilevelStep` whose iterations with a hypergradient are one compiled function; the others are eager.

    The first of them compiles. AdamW's state is read from `policy_optimizer` and written back.

    Args:
        parts: of a `BilevelStep`: `options` are the defaults but for `clip_norm`, `policy_optimizer` is a plain AdamW
            of theta and log alpha, there is no `extractor`.
        on_note: told if compiling fails, after which iterations are eager.
        strict: a failure to compile is an error.
        backend: of `torch.compile`.
    """

    def __init__(
        self,
        *,
        on_note: Callable[[str], None] = lambda text: None,
        strict: bool = False,
        backend: str = "inductor",
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        if self.options != StepOptions(clip_norm=self.options.clip_norm) or self.extractor is not None:
            raise ValueError("only the paper's iteration is compiled")
        if not isinstance(self.policy_optimizer, AdamW):
            raise ValueError("only AdamW is compiled")
        self._fell_back = False
        self._on_note, self._strict = on_note, strict
        load_rules()
        defaults = self.policy_optimizer.defaults
        function = one_iteration(self.losses, self.policy, defaults["betas"], defaults["eps"])
        options = {"joint_custom_pre_pass": merging_pass()} if backend == "inductor" else None
        self._function = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, options=options)

    def _step(self, batch: Batch, validation: tuple[Tensor, Tensor] | None) -> StepRecord:
        if validation is None or self._fell_back:
            return super()._step(batch, validation)
        theta = {name: tensor.detach() for name, tensor in self.policy.named_parameters()}
        learned: list[nn.Parameter] = [*self.policy.parameters(), self.rate.log_alpha]
        states, scales = self._adam(learned)
        parameters, buffers = self.losses.parameters(), dict(self.network.named_buffers())
        try:
            with torch.no_grad():
                outcome = self._function(
                    {name: tensor.detach() for name, tensor in parameters.items()},
                    buffers,
                    theta,
                    self.rate.log_alpha.detach(),
                    [(state["exp_avg"], state["exp_avg_sq"]) for state in states],
                    scales,
                    (batch.images, batch.labels, batch.embedding, batch.features),
                    validation,
                )
        except torch._dynamo.exc.TorchDynamoException as problem:
            reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            if self._strict:
                raise EnvironmentFault(
                    "compile", f"torch cannot compile the iteration ({reason})", "use --set compile=never"
                ) from None
            self._fell_back, self.how = True, "not compiled (torch cannot)"
            self._on_note(f"torch cannot compile the iteration ({reason}); it goes on uncompiled")
            return super()._step(batch, validation)
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(outcome.buffers[name])
            for variable, value, state, moments in zip(learned, outcome.learned, states, outcome.moments, strict=True):
                variable.copy_(value)
                state["exp_avg"].copy_(moments[0])
                state["exp_avg_sq"].copy_(moments[1])
                state["step"] += 1
        for name, parameter in parameters.items():
            parameter.grad = outcome.gradient[name]
        update(self.network, self.optimizer, self.options.clip_norm, outcome.loss)
        return StepRecord(
            loss=outcome.loss,
            raw=outcome.raw,
            weights=outcome.weights,
            alpha=self.rate().detach(),
            hypergradient=Hypergradient(*outcome.hypergradient),
            rows=torch.arange(len(batch), device=batch.images.device),
            theta_gradient=outcome.theta_gradient,
        )

    def _adam(self, learned: list[nn.Parameter]) -> tuple[list[dict[str, Tensor]], list[tuple[Tensor, ...]]]:
        """For each parameter: AdamW's state, the factor of weight decay, the step's length, the moment's correction."""
        groups = {id(parameter): group for group in self.policy_optimizer.param_groups for parameter in group["params"]}
        states, scales = [], []
        for parameter in learned:
            group, state = groups[id(parameter)], self.policy_optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.get_default_dtype())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            taken, (first, second) = float(state["step"]) + 1, group["betas"]
            length, correction = group["lr"] / (1 - first**taken), math.sqrt(1 - second**taken)
            kept = 1 - group["lr"] * group["weight_decay"]
            # Tensors, because a number would be compiled as a constant.
            scales.append(torch.tensor([kept, length, correction], dtype=torch.float64).unbind())
            states.append({name: state[name].detach() for name in ("step", "exp_avg", "exp_avg_sq")})
        return states, scales


class Outcome(NamedTuple):
    """The result of an iteration; nothing has been written to the state yet.

    Attributes:
        gradient: of the weighted loss by the parameters' names.
        buffers: after the batch's forward.
        learned: theta and log alpha after their update.
        moments: AdamW's, of each of them.
        loss: float [], the weighted training loss.
        raw, weights: float [n], the new theta's.
        hypergradient: weights, alpha, validation loss and gradient, as in `Hypergradient`.
        theta_gradient: float [policy's parameters].
    """

    gradient: Tensors
    buffers: Tensors
    learned: list[Tensor]
    moments: list[tuple[Tensor, Tensor]]
    loss: Tensor
    raw: Tensor
    weights: Tensor
    hypergradient: tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]
    theta_gradient: Tensor


class _FeaturesAndLogits(nn.Module):
    """The network as `functional_call` needs it: one forward that gives both."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = feature_maps(self.network, images)
        return head(self.network, maps, pre_logits=True), head(self.network, maps)


def one_iteration(
    network_losses: NetworkLosses, policy: PolicyNetwork, betas: tuple[float, float], epsilon: float
) -> Callable[..., Outcome]:
    """Eq. 2 to 4 of MetaAugment (Zhou et al., AAAI 2021) as a function without side effects, without w's update.

    It is one long function because it is traced as one graph, in which common sub-expressions are merged.

    Args:
        network_losses: of a network in training mode; its parameters and buffers are arguments of the function.
        policy: the same.
        betas, epsilon: of AdamW (Loshchilov and Hutter, ICLR 2019), as in `torch.optim.AdamW`.
    """
    both = _FeaturesAndLogits(network_losses.network)

    # Outside the compiled function, which could not evaluate their annotations.
    def forward(
        at: Tensors, buffers: Tensors, images: Tensor, labels: Tensor, loss: SampleLoss = network_losses.training
    ) -> tuple[Tensor, tuple[Tensor, Tensors]]:
        moved = {name: buffer.clone() for name, buffer in buffers.items()}
        state = {f"network.{name}": tensor for name, tensor in (at | moved).items()}
        own, logits = functional_call(both, state, (images,))
        return loss(logits, labels), (own.detach(), moved)

    def weigh(at: Tensors, seen: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        raw: Tensor = functional_call(policy, at, (seen, embedding))
        return normalise_weights(raw), raw

    def iteration(
        w: Tensors,
        buffers: Tensors,
        theta: Tensors,
        log_alpha: Tensor,
        moments: list[tuple[Tensor, Tensor]],
        scales: list[tuple[Tensor, ...]],
        batch: tuple[Tensor, Tensor, Tensor, Tensor | None],
        validation: tuple[Tensor, Tensor],
    ) -> Outcome:
        images, labels, embedding, features = batch

        # The ignores: torch's annotations leave open how many results vjp and jvp have.
        losses, pull_back, (own, moved) = vjp(lambda at: forward(at, buffers, images, labels), w, has_aux=True)  # type: ignore[misc]
        seen = own if features is None else features
        weights, pull_back_theta, _ = vjp(lambda at: weigh(at, seen, embedding), theta, has_aux=True)  # type: ignore[misc]
        alpha = log_alpha.exp()
        rates = dict(zip(w, alpha.expand(len(w)).unbind(), strict=True))
        (gradient,) = pull_back(weights)
        w_hat = {name: tensor - rates[name] * gradient[name] for name, tensor in w.items()}
        descent, validation_loss = grad_and_value(
            lambda at: forward(at, buffers, *validation, network_losses.validation)[0].mean()
        )(w_hat)
        direction = {name: rates[name] * descent[name] for name in w}
        _, slopes = jvp(lambda at: forward(at, buffers, images, labels)[0], (w,), (direction,))  # type: ignore[misc]
        by_tensor = torch.stack([-(descent[name] * gradient[name]).sum() for name in w])
        by_alpha = by_tensor if alpha.ndim else by_tensor.sum()

        (by_theta,) = pull_back_theta(-slopes)
        learned, moved_moments = [], []
        for value, derivative, (first, second), (kept, length, correction) in zip(
            [*theta.values(), log_alpha],
            [*(by_theta[name] for name in theta), by_alpha * alpha],
            moments,
            scales,
            strict=True,
        ):
            first = first.lerp(derivative, 1 - betas[0])
            second = (second * betas[1]).addcmul(derivative, derivative, value=1 - betas[1])
            learned.append(kept * value - length * (first / (second.sqrt() / correction + epsilon)))
            moved_moments.append((first, second))

        weights, raw = weigh(dict(zip(theta, learned, strict=False)), seen, embedding)
        (weighted,) = pull_back(weights)
        return Outcome(
            gradient=weighted,
            buffers=moved,
            learned=learned,
            moments=moved_moments,
            loss=(losses * weights).sum(),
            raw=raw,
            weights=weights,
            hypergradient=(-slopes, by_alpha, validation_loss, tuple(gradient[name] for name in w)),
            theta_gradient=torch.cat([by_theta[name].flatten() for name in theta]),
        )

    return iteration
