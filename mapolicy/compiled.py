"""The bilevel step as one function of tensors under `torch.compile`.

Written as one function, the virtual step, its hypergradient, the policy's update and the weighted gradient share what
they have in common: the forward-mode pass takes its values from the forward, the weighted gradient its graph. The
result is `BilevelStep`'s up to rounding. It is for networks that draw no noise, and for the paper's algorithm alone.
"""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call, grad_and_value, jvp, vjp
from torch.optim import Adam
from torch.overrides import TorchFunctionMode

from .bilevel import Batch, BilevelStep, Hypergradient, StepOptions, StepRecord, update
from .config import RunConfig, SearchConfig
from .errors import EnvironmentFault, UsageError
from .forward_mode import load_rules
from .policy import PolicyNetwork, normalise_weights

WORTH_COMPILING = 10_000  # hypergradients of a run; compiling takes minutes, and each then saves a fraction of a step

Tensors = dict[str, Tensor]
Notes = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """Whether a run compiles its iteration, and why."""

    compiled: bool
    reason: str

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'} ({self.reason})"


def choose(config: RunConfig, network: nn.Module, channels: int, iterations: int, device: torch.device) -> Choice:
    """Whether to compile the bilevel step of a run: a function of its configuration, its network and this machine.

    Args:
        config: `compile` is "auto", "never" or "always".
        network: the task network; it is left as it was.
        channels: of the images.
        iterations: of the whole run.
        device: that the run uses.

    Raises:
        UsageError: "always" where the compiled step could not be exact.
        EnvironmentFault: "always" and there is no C++ compiler.
    """
    if config.compile == "never":
        return Choice(False, "as asked for")
    always, lessons = config.compile == "always", -(-iterations // config.meta_every)
    if not always and lessons < WORTH_COMPILING:
        return Choice(False, f"{lessons} hypergradients do not repay compiling, {WORTH_COMPILING} would")
    if not always and device.type != "cpu":
        return Choice(False, "chosen on a CPU alone")
    obstacle = _other_algorithm(config) or find_obstacle(network, config.image_size, channels)
    if obstacle is not None:
        if always:
            raise UsageError("compile", f"'always' is not possible: {obstacle}", "use --set compile=auto")
        return Choice(False, obstacle)
    if not _has_compiler():
        if always:
            raise EnvironmentFault("compile", "there is no C++ compiler", "install one, or use --set compile=auto")
        return Choice(False, "there is no C++ compiler")
    return Choice(True, "as asked for" if always else f"{lessons} hypergradients repay compiling")


def _other_algorithm(config: RunConfig) -> str | None:
    if StepOptions.of(config) != StepOptions(clip_norm=config.clip_norm):
        return "the iteration is not the paper's"
    if config.constant_rates:
        return "the policy's optimiser is not Adam"
    if isinstance(config, SearchConfig) and config.extractor != "shared":
        return "the policy has an extractor of its own"
    return None


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


class _AttentionSeen(TorchFunctionMode):
    """Notes whether attention was called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (F.scaled_dot_product_attention, F.multi_head_attention_forward):
            self.seen = True
        return function(*args, **(kwargs or {}))


def find_obstacle(network: nn.Module, image_size: int, channels: int) -> str | None:
    """Why the compiled step would not be exact for this network, found by a forward of two images; None if it is."""
    device = next(network.parameters()).device
    cuda = device.type == "cuda"
    images = torch.linspace(-1, 1, 2 * channels * image_size**2, device=device)
    images = images.reshape(2, channels, image_size, image_size)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    training = network.training

    def noise() -> Tensor:
        return torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if cuda else []), _AttentionSeen() as attention:
            network.train()
            drawn = noise()
            maps = network.forward_features(images)  # type: ignore[operator]
            network.forward_head(maps)  # type: ignore[operator]
            moved = {name: buffer.clone() for name, buffer in network.named_buffers()}
            network.forward_head(maps, pre_logits=True)  # type: ignore[operator]
            draws = not torch.equal(drawn, noise())
            head = any(not torch.equal(moved[name], buffer) for name, buffer in network.named_buffers())
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
        network.train(training)
    changed = [name for name in moved if not torch.equal(moved[name], before[name])]
    owners = (network.get_submodule(name.rpartition(".")[0]) for name in changed)
    if draws:
        return "the network draws noise (dropout, stochastic depth)"
    if attention.seen:
        return "the network has attention"
    if head or not all(getattr(owner, "track_running_stats", False) for owner in owners):
        return "the network changes more than running statistics in one forward"
    return None


def make_step(choice: Choice, noted: Notes, strict: bool, **parts: Any) -> BilevelStep:
    """The bilevel step as chosen.

    Args:
        choice: see `choose`.
        noted: told if compiling fails, after which iterations are eager.
        strict: a failure to compile is an error.
        parts: of a `BilevelStep`.
    """
    step = CompiledStep(**parts, noted=noted, strict=strict) if choice.compiled else BilevelStep(**parts)
    step.how = str(choice)
    return step


class CompiledStep(BilevelStep):
    """A `BilevelStep` whose iterations with a hypergradient are one compiled function; the others are eager.

    Compiling takes place in the first of them. Adam's state is read from `policy_optimizer` and written back.

    Args:
        parts: of a `BilevelStep`: `options` are the defaults but for `clip_norm`, `policy_optimizer` is a plain Adam
            of theta and log alpha, there is no `extractor`.
        noted: told if compiling fails, after which iterations are eager.
        strict: a failure to compile is an error.
        backend: of `torch.compile`.
    """

    def __init__(
        self, *, noted: Notes = lambda text: None, strict: bool = False, backend: str = "inductor", **parts: Any
    ) -> None:
        super().__init__(**parts)
        if self.options != StepOptions(clip_norm=self.options.clip_norm) or self.extractor is not None:
            raise ValueError("only the paper's iteration is compiled")
        if not isinstance(self.policy_optimizer, Adam):
            raise ValueError("only Adam is compiled")
        self._fell_back = False
        self._noted, self._strict = noted, strict
        load_rules()
        defaults = self.policy_optimizer.defaults
        function = one_iteration(self.network, self.policy, defaults["betas"], defaults["eps"])
        options = {"joint_custom_pre_pass": _merging_pass()} if backend == "inductor" else None
        self._function = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, options=options)

    def _step(self, batch: Batch, validation: tuple[Tensor, Tensor] | None) -> StepRecord:
        if validation is None or self._fell_back:
            return super()._step(batch, validation)
        theta = {name: tensor.detach() for name, tensor in self.policy.named_parameters()}
        learned: list[nn.Parameter] = [*self.policy.parameters(), self.rate.log_alpha]
        states, scales = self._adam(learned)
        parameters, buffers = self._parameters(), dict(self.network.named_buffers())
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
            self._fell_back, self.how = True, "eager (torch cannot compile it)"
            self._noted(f"torch cannot compile the iteration ({reason}); it goes on uncompiled")
            return super()._step(batch, validation)
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(outcome.buffers[name])
            for parameter, value, state, moments in zip(learned, outcome.learned, states, outcome.moments, strict=True):
                parameter.copy_(value)
                state["exp_avg"].copy_(moments[0])
                state["exp_avg_sq"].copy_(moments[1])
                state["step"] += 1
        for name, parameter in parameters.items():  # type: ignore[assignment]
            parameter.grad = outcome.gradient[name]
        update(self.network, self.optimizer, self.options.clip_norm)
        return StepRecord(
            outcome.loss, outcome.raw, outcome.weights, self.rate().detach(), Hypergradient(*outcome.hypergradient)
        )

    def _adam(self, learned: list[nn.Parameter]) -> tuple[list[dict[str, Tensor]], list[tuple[Tensor, Tensor]]]:
        """For each parameter Adam's state, and its next step's length and correction of the second moment."""
        groups = {id(parameter): group for group in self.policy_optimizer.param_groups for parameter in group["params"]}
        states, scales = [], []
        for parameter in learned:
            group, state = groups[id(parameter)], self.policy_optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.get_default_dtype())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            taken, (first, second) = float(state["step"]) + 1, group["betas"]
            length, correction = group["lr"] / (1 - first**taken), math.sqrt(1 - second**taken)
            # Tensors, since a number would be compiled in.
            scales.append((torch.tensor(length, dtype=torch.float64), torch.tensor(correction, dtype=torch.float64)))
            states.append({name: state[name].detach() for name in ("step", "exp_avg", "exp_avg_sq")})
        return states, scales


class Outcome(NamedTuple):
    """What an iteration makes of its state; nothing has been written yet.

    Attributes:
        gradient: of the weighted loss by the parameters' names.
        buffers: after the batch's forward.
        learned: theta and log alpha after their update.
        moments: Adam's, of each of them.
        loss: float [], the weighted training loss.
        raw, weights: float [n], the new theta's.
        hypergradient: weights, alpha, validation loss and gradient, as in `Hypergradient`.
    """

    gradient: Tensors
    buffers: Tensors
    learned: list[Tensor]
    moments: list[tuple[Tensor, Tensor]]
    loss: Tensor
    raw: Tensor
    weights: Tensor
    hypergradient: tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]


class _FeaturesAndLogits(nn.Module):
    """The network as `functional_call` needs it: one forward that gives both."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network.forward_features(images)  # type: ignore[operator]
        return self.network.forward_head(maps, pre_logits=True), self.network.forward_head(maps)  # type: ignore[operator]


def one_iteration(
    network: nn.Module, policy: PolicyNetwork, betas: tuple[float, float], epsilon: float
) -> Callable[..., Outcome]:
    """Eq. 2 to 4 of MetaAugment (Zhou et al., AAAI 2021) as a function without side effects, up to w's own update.

    Args:
        network: in training mode; its parameters and buffers are arguments of the function.
        policy: the same.
        betas, epsilon: of Adam (Kingma and Ba, ICLR 2015), as in `torch.optim.Adam`.
    """
    both = _FeaturesAndLogits(network)

    # Outside of what is compiled, which could not evaluate their annotations.
    def forward(at: Tensors, buffers: Tensors, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensors]]:
        moved = {name: buffer.clone() for name, buffer in buffers.items()}
        state = {f"network.{name}": tensor for name, tensor in (at | moved).items()}
        own, logits = functional_call(both, state, (images,))
        return F.cross_entropy(logits, labels, reduction="none"), (own.detach(), moved)

    def weigh(at: Tensors, seen: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        raw: Tensor = functional_call(policy, at, (seen, embedding))
        return normalise_weights(raw), raw

    def iteration(
        w: Tensors,
        buffers: Tensors,
        theta: Tensors,
        log_alpha: Tensor,
        moments: list[tuple[Tensor, Tensor]],
        scales: list[tuple[Tensor, Tensor]],
        batch: tuple[Tensor, Tensor, Tensor, Tensor | None],
        validation: tuple[Tensor, Tensor],
    ) -> Outcome:
        images, labels, embedding, features = batch

        losses, pull_back, (own, moved) = vjp(lambda at: forward(at, buffers, images, labels), w, has_aux=True)  # type: ignore[misc]
        seen = own if features is None else features
        weights, pull_back_theta, _ = vjp(lambda at: weigh(at, seen, embedding), theta, has_aux=True)  # type: ignore[misc]
        alpha = log_alpha.exp()
        rates = dict(zip(w, alpha.expand(len(w)).unbind(), strict=True))
        (gradient,) = pull_back(weights)
        w_hat = {name: tensor - rates[name] * gradient[name] for name, tensor in w.items()}
        descent, validation_loss = grad_and_value(lambda at: forward(at, buffers, *validation)[0].mean())(w_hat)
        direction = {name: rates[name] * descent[name] for name in w}
        _, slopes = jvp(lambda at: forward(at, buffers, images, labels)[0], (w,), (direction,))  # type: ignore[misc]
        by_tensor = torch.stack([-(descent[name] * gradient[name]).sum() for name in w])
        by_alpha = by_tensor if alpha.ndim else by_tensor.sum()

        (by_theta,) = pull_back_theta(-slopes)
        learned, moved_moments = [], []
        for value, derivative, (first, second), (length, correction) in zip(
            [*theta.values(), log_alpha],
            [*(by_theta[name] for name in theta), by_alpha * alpha],
            moments,
            scales,
            strict=True,
        ):
            first = first.lerp(derivative, 1 - betas[0])
            second = (second * betas[1]).addcmul(derivative, derivative, value=1 - betas[1])
            learned.append(value - length * (first / (second.sqrt() / correction + epsilon)))
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
        )

    return iteration


def merge_equal(graph: fx.Graph) -> None:
    """Compute equal values once: the values of the forward-mode pass are those of the forward.

    Inductor merges equal elementwise work within a kernel, but not two convolutions of the same input.
    """
    aliases = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
    results = {node for last in graph.nodes if last.op == "output" for node in last.all_input_nodes}
    known: dict[tuple[Any, str, str], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in results or not _repeatable(node.target):
            continue
        if node.target in aliases:
            same = node.args[0]
        else:
            same = known.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _repeatable(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", "") == "getitem"
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _merging_pass() -> Any:
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Merge(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            merge_equal(graph)

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))

    return Merge()
