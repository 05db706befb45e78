"""The exact bilevel step against the steps of other libraries: higher, torchopt, betty. JSON on stdout.

pip install -e '.[benchmarks]'
python benchmarks/library_steps.py --rounds 7 > library_steps.json

Network, batch and optimisers are those of `mapolicy bench step`. Before the timing, each library's gradients of theta
and alpha are compared with ours in a first step on a few images. `theta_error` and `alpha_error` are relative errors in
float64, in which no ReLU changes sides by rounding. Libraries that are missing or fail here are under `left_out`.
"""

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapolicy import SearchConfig, recipes
from mapolicy.bench.double_backward import DoubleBackwardStep
from mapolicy.bench.interleaved import Candidate, Clock, measure
from mapolicy.bench.report import Report
from mapolicy.bench.step_case import DOUBLE_BACKWARD, PLAIN, StepCase, candidate
from mapolicy.bilevel.bilevel_step import BilevelStep
from mapolicy.bilevel.weighted_step import weighted_step
from mapolicy.models.features import features_and_logits, running_statistics_kept
from mapolicy.policy.network import normalise_weights
from mapolicy.runtime.device import reproducible

CHECKED_IMAGES, TOLERANCE = 16, 1e-9
DISTRIBUTIONS = {"higher": "higher", "torchopt": "torchopt", "betty": "betty-ml"}


class FeaturesAndLogits(nn.Module):
    """The network with features and logits from one forward, for libraries that only call `forward`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits."""
        return features_and_logits(self.network, images)


class LibraryStep:
    """MetaAugment's Algorithm 1; subclasses differentiate the virtual step with a library.

    The inner learning rate is 1 and alpha multiplies the inner loss. That gives the same w_hat = w - alpha g, and alpha
    can be learned although the libraries' learning rates are plain numbers.
    """

    def __init__(self, network, policy, rate, optimizer, policy_optimizer, options) -> None:
        self.network, self.policy, self.rate = network, policy, rate
        self.optimizer, self.policy_optimizer, self.clip_norm = optimizer, policy_optimizer, options.clip_norm
        self.both = FeaturesAndLogits(network)

    def __call__(self, images, labels, embedding, validation, noise_seed) -> Tensor:
        """Update theta, alpha and w."""
        network = self.network.train()
        torch.manual_seed(noise_seed)
        self.policy_optimizer.zero_grad()
        with running_statistics_kept(network):
            features = self.learn(images, labels, embedding, *validation)
        self.policy_optimizer.step()
        with torch.no_grad():
            weights = normalise_weights(self.policy(features, embedding))
        losses = F.cross_entropy(network(images), labels, reduction="none")
        return weighted_step([losses], [weights], network, self.optimizer, self.clip_norm)

    def inner_loss(self, forward, images, labels, embedding) -> tuple[Tensor, Tensor]:
        """alpha times the weighted loss, and the features."""
        features, logits = forward(images)
        features = features.detach()
        losses = F.cross_entropy(logits, labels, reduction="none")
        return self.rate() * (normalise_weights(self.policy(features, embedding)) * losses).sum(), features

    def set_gradients(self, loss: Tensor) -> None:
        """Set the gradients of theta and alpha from the validation loss after the virtual step."""
        learned = [*self.policy.parameters(), *self.rate.parameters()]
        for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            parameter.grad = gradient


class HigherStep(LibraryStep):
    """github.com/facebookresearch/higher: a functional copy of the network and a differentiable SGD."""

    def __init__(self, **parts) -> None:
        super().__init__(**parts)
        import higher

        self.higher = higher
        self.inner = torch.optim.SGD(self.network.parameters(), lr=1.0)

    def learn(self, images, labels, embedding, validation_images, validation_labels) -> Tensor:
        """Set theta's and alpha's gradients; return the features."""
        context = self.higher.innerloop_ctx(self.both, self.inner, copy_initial_weights=False)
        with context as (forward, differentiable):
            loss, features = self.inner_loss(forward, images, labels, embedding)
            differentiable.step(loss)
            self.set_gradients(F.cross_entropy(forward(validation_images)[1], validation_labels))
        return features


class TorchoptStep(LibraryStep):
    """github.com/metaopt/torchopt: MetaSGD makes the parameters functions of theta until they are restored."""

    def __init__(self, **parts) -> None:
        super().__init__(**parts)
        import torchopt

        self.torchopt = torchopt
        self.inner = torchopt.MetaSGD(self.both, lr=1.0)

    def learn(self, images, labels, embedding, validation_images, validation_labels) -> Tensor:
        """Set theta's and alpha's gradients; return the features."""
        torchopt = self.torchopt
        states = [(part, torchopt.extract_state_dict(part, by="reference")) for part in (self.both, self.inner)]
        loss, features = self.inner_loss(self.both, images, labels, embedding)
        self.inner.step(loss)
        self.set_gradients(F.cross_entropy(self.both(validation_images)[1], validation_labels))
        for part, state in states:
            torchopt.recover_state_dict(part, state)
        return features


class BettyStep(LibraryStep):
    """github.com/leopard-ai/betty: its default, the implicit gradient by finite differences (`type="darts"`).

    It differentiates the inner gradient at w_hat instead of w and has no gradient for alpha, so it does not estimate
    Eq. 3. betty's engine owns the training loop; its estimator is called here as the engine calls it.
    """

    def __init__(self, **parts) -> None:
        super().__init__(**parts)
        from betty.configs import Config
        from betty.hypergradient import get_grads

        self.get_grads, self.config = get_grads, Config(type="darts")

    def learn(self, images, labels, embedding, validation_images, validation_labels) -> Tensor:
        """Set theta's gradients; return the features."""
        loss, features = self.inner_loss(self.both, images, labels, embedding)
        tensors = list(self.network.parameters())
        gradients = torch.autograd.grad(loss, tensors)
        before = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            torch._foreach_sub_(tensors, gradients)
        loss = F.cross_entropy(self.both(validation_images)[1], validation_labels)
        inner = _Level(tensors, self.config, lambda: self.inner_loss(self.both, images, labels, embedding)[0])
        outer = _Level(list(self.policy.parameters()), self.config, None)
        # The path of gradients in the engine: upper level, lower level, upper level.
        for parameter, gradient in zip(
            self.policy.parameters(), self.get_grads(loss, [outer, inner, outer], False), strict=True
        ):
            parameter.grad = gradient
        with torch.no_grad():  # roll_back
            torch._foreach_copy_(tensors, before)
        return features


class _Level:
    """The part of betty's `Problem` that its estimators use."""

    def __init__(self, parameters, config, loss) -> None:
        self._parameters, self.config, self._loss, self.cur_batch = parameters, config, loss, None

    def trainable_parameters(self):
        return self._parameters

    def training_step_exec(self, batch):
        return self._loss()


LIBRARIES = {"higher": HigherStep, "torchopt": TorchoptStep, "betty": BettyStep}


def gradients(kind: type, case: StepCase) -> tuple[Tensor, Tensor | None]:
    """Gradients of theta and of log alpha in the first step, with a policy of unequal weights."""
    parts = case.learner(case.config)
    parts["rate"].double()
    torch.manual_seed(0)
    nn.init.normal_(parts["policy"].output.weight, std=0.3)
    kind(**parts)(*case.arguments(0))
    theta = torch.cat([parameter.grad.flatten() for parameter in parts["policy"].parameters()])
    alpha = parts["rate"].log_alpha.grad
    return theta, None if alpha is None else alpha.clone()


def errors(kind: type, case: StepCase) -> dict[str, float | bool | None]:
    """Errors of a library's gradients relative to ours."""
    few = case.cut(CHECKED_IMAGES)
    names = ("network", "policy", "images", "embedding", "validation_images")
    few = replace(few, **{name: copy.deepcopy(getattr(few, name)).double() for name in names})
    (theta, alpha), (expected, expected_alpha) = gradients(kind, few), gradients(BilevelStep, few)
    found = {
        "theta_error": float((theta - expected).norm() / expected.norm()),
        "theta_cosine": float(F.cosine_similarity(theta, expected, dim=0)),
        "alpha_error": None if alpha is None else float((alpha - expected_alpha).abs() / expected_alpha.abs()),
    }
    exact = [found["theta_error"], found["alpha_error"]]
    return found | {"exact": all(error is not None and error < TOLERANCE for error in exact)}


@contextmanager
def their_warnings_ignored() -> Iterator[None]:
    """Ignore the warnings of old libraries on a new torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Check each library's gradients, then time all steps in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    _, settings = recipes.find("search", "cifar100", "wrn16_2")
    batch = {"batch_size": arguments.batch_size, "validation_batch_size": arguments.batch_size}
    settings |= {"proxy": "wrn16_2", "threads": 1, "device": "cpu", **batch}
    config = SearchConfig.from_mapping(settings)
    device = torch.device("cpu")
    clock = Clock.of(device)

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with reproducible(config.threads, device) as threads, their_warnings_ignored():
        case = StepCase.build(config, device)
        candidates = [candidate(case, PLAIN), candidate(case, "exact")]
        textbook = candidate(case, DOUBLE_BACKWARD)
        candidates.append(Candidate(textbook.what, textbook.work, facts=errors(DoubleBackwardStep, case)))
        left_out = {}
        for name, kind in LIBRARIES.items():
            progress(f"checking the gradients of {name}")
            try:
                found = errors(kind, case)
            except Exception as problem:  # any error of an old library on this torch
                left_out[name] = f"{type(problem).__name__}: {str(problem).splitlines()[0]}"
                continue
            step = kind(**case.learner(config))
            candidates.append(Candidate(name, lambda call, step=step: step(*case.arguments(call)), facts=found))
        rows = measure(candidates, PLAIN, arguments.rounds, clock, progress, "steps")
    packages = [DISTRIBUTIONS[name] for name in LIBRARIES if name not in left_out]
    measured = {"arch": config.proxy, "rounds": arguments.rounds, **batch}
    report = Report(rows, clock.meaning, measured, threads, device, packages, left_out)
    print(json.dumps(report.document(), indent=1))


if __name__ == "__main__":
    main()
