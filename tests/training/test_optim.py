"""Learning rates against their closed form, optimisers against their update written out."""

import math
from unittest.mock import Mock

import pytest
import timm
import torch
from timm.scheduler import create_scheduler_v2
from torch import nn

import mapolicy.models  # noqa: F401 - registers wrn10_1
from mapolicy.bilevel.inner_rate import InnerRate
from mapolicy.config import TrainConfig
from mapolicy.config.choices import TRAIN_SCHEDULES
from mapolicy.errors import UsageError
from mapolicy.policy.network import PolicyNetwork
from mapolicy.training.optim import (
    make_optimizer,
    make_policy_optimizer,
    make_schedule,
    theorem1_policy_rate,
    theorem1_rate,
)
from tests.helpers.settings import TINY

BASE = TrainConfig(
    dataset="digits",
    arch="wrn10_1",
    **TINY
    | {
        "train_per_class": 0,
        "epochs": 5,
        "learning_rate": 0.3,
        "weight_decay": 0.01,
        "policy_learning_rate": 0.02,
        "alpha_learning_rate": 0.03,
    },
)
PER_EPOCH = 7


def rates(**changes: object) -> list[float]:
    config = BASE.with_changes(**changes)
    optimizer = make_optimizer(config, nn.Linear(2, 2))
    schedule = make_schedule(config, optimizer, PER_EPOCH)
    seen = []
    for step in range(config.epochs * PER_EPOCH):
        schedule.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_cosine_at_every_step() -> None:
    total = 5 * PER_EPOCH
    expected = [0.15 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert rates() == pytest.approx(expected, rel=1e-12)
    assert expected[0] == 0.3
    assert 0 < expected[-1] < 0.001


@pytest.mark.parametrize("warmup_epochs", [1, 2, 4])
def test_warm_up_then_cosine_over_the_rest(warmup_epochs: int) -> None:
    warmup = warmup_epochs * PER_EPOCH
    rest = 5 * PER_EPOCH - warmup
    expected = [0.3 * step / warmup for step in range(warmup)]
    expected += [0.15 * (1 + math.cos(math.pi * step / rest)) for step in range(rest)]
    assert rates(warmup_epochs=warmup_epochs) == pytest.approx(expected, rel=1e-12)


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    optimizer = make_optimizer(BASE, nn.Linear(2, 2))
    schedule = make_schedule(BASE, optimizer, PER_EPOCH)
    expected = rates()
    for step in (30, 0, 34, 11, 11):
        schedule.step_update(step)
        assert optimizer.param_groups[0]["lr"] == expected[step]


def trajectory(optimizer_name: str, steps: int = 4, **changes: object) -> list[float]:
    """A single number that an optimiser moves down its square."""
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, 2.0)
    optimizer = make_optimizer(BASE.with_changes(optimizer=optimizer_name, **changes), module)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        (module.weight**2 / 2).sum().backward()
        optimizer.step()
        seen.append(module.weight.item())
    return seen


@pytest.mark.parametrize(("name", "nesterov"), [("sgd", True), ("momentum", False)])
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_update_written_out(name: str, nesterov: bool, momentum: float) -> None:
    weight, velocity, expected = 2.0, 0.0, []
    for _ in range(4):
        gradient = weight + 0.01 * weight
        velocity = momentum * velocity + gradient
        weight -= 0.3 * (gradient + momentum * velocity if nesterov else velocity)
        expected.append(weight)
    assert trajectory(name, momentum=momentum) == pytest.approx(expected, rel=1e-12)


def test_other_optimisers_of_timm() -> None:
    optimizer = make_optimizer(BASE.with_changes(optimizer="adamw"), nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.3, 0.01, 2)


@pytest.mark.parametrize("decay_all", [True, False])
def test_what_is_decayed(decay_all: bool) -> None:
    network = timm.create_model("wrn10_1")
    optimizer = make_optimizer(BASE.with_changes(decay_all=decay_all), network)
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed, spared = set(), set()
    for group in optimizer.param_groups:
        assert group["weight_decay"] in (0, 0.01)
        (decayed if group["weight_decay"] else spared).update(names[parameter] for parameter in group["params"])
    vectors = {name for name, parameter in network.named_parameters() if parameter.ndim == 1}
    assert {"bn.weight", "bn.bias", "fc.bias"} < vectors
    assert spared == (set() if decay_all else vectors)
    assert decayed == set(names.values()) - spared


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"optimizer": "nope"}, "Optimizer nope not found"),
        ({"optimizer": "lookahead_nope"}, "Optimizer nope not found"),
        ({"optimizer": ""}, "Optimizer  not found"),
        ({"momentum": 0.0}, "Nesterov momentum requires a momentum"),
    ],
)
def test_unknown_optimiser(changes: dict[str, object], why: str) -> None:
    with pytest.raises(
        UsageError, match=f"^optimizer: '.*' cannot be had: {why}.*; name one of timm's that fits"
    ) as refusal:
        make_optimizer(BASE.with_changes(**changes), nn.Linear(2, 2))
    assert "\n" not in str(refusal.value)


def test_theta_and_alpha_have_rates_of_their_own() -> None:
    policy, rate = PolicyNetwork(4), InnerRate(0.1)
    optimizer = make_policy_optimizer(BASE, policy.parameters(), rate, 100)
    assert type(optimizer) is torch.optim.AdamW
    theta, alpha = optimizer.param_groups
    assert (theta["lr"], alpha["lr"]) == (0.02, 0.03)
    assert [*map(id, theta["params"])] == [*map(id, policy.parameters())]
    assert [*map(id, alpha["params"])] == [id(rate.log_alpha)]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0}
    before = policy.output.bias.item(), rate.log_alpha.item()
    (policy.output.bias.sum() - rate.log_alpha).backward()
    optimizer.step()
    # Adam's first step is the rate itself, against the gradient's sign.
    assert policy.output.bias.item() == pytest.approx(before[0] - 0.02, rel=1e-5)
    assert rate.log_alpha.item() == pytest.approx(before[1] + 0.03, rel=1e-5)


def test_theta_forgets_over_a_share_of_the_run() -> None:
    """Without a gradient it fades to 1/e over `policy_memory` of the run, whatever its rate; alpha stays."""
    policy, rate = PolicyNetwork(4), InnerRate(0.1)
    config = BASE.with_changes(policy_memory=0.25)
    optimizer = make_policy_optimizer(config, policy.parameters(), rate, 4000)
    before = policy.feature_layer.weight.detach().clone()
    for parameter in [*policy.parameters(), rate.log_alpha]:
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(1000):
        optimizer.step()
    torch.testing.assert_close(policy.feature_layer.weight.detach(), before / math.e, rtol=1e-3, atol=0)
    assert rate().item() == pytest.approx(0.1, rel=1e-6)


def test_no_rate_keeps_alpha_fixed() -> None:
    rate = InnerRate(0.1)
    optimizer = make_policy_optimizer(BASE.with_changes(alpha_learning_rate=0), [], rate, 100)
    rate.log_alpha.grad = torch.ones(())
    optimizer.step()
    assert rate().item() == pytest.approx(0.1, rel=1e-6)


def test_theorem_1_has_constant_rates(make_search_config) -> None:
    """c'' log T / T for w, sqrt(c' log log T / T) for theta; alpha does not learn."""
    config = make_search_config(
        schedule="theorem1", alpha_learning_rate=0.0, learning_rate=2.0, policy_learning_rate=3.0
    )
    network = nn.Linear(3, 2)
    optimizer = make_optimizer(config, network)
    schedule = make_schedule(config, optimizer, 50)  # of 2 epochs
    rates = set()
    for step in range(100):
        schedule.step_update(step)
        rates.add(optimizer.param_groups[0]["lr"])
    assert list(rates) == [pytest.approx(2 * 4.605170186 / 100)]
    theta, rate = nn.Parameter(torch.zeros(2)), InnerRate(0.1)
    policy_optimizer = make_policy_optimizer(config, [theta], rate, 100)
    theta.grad, rate.log_alpha.grad = torch.tensor([1.0, -2.0]), torch.ones(())
    policy_optimizer.step()
    beta = (3 * 1.527179626 / 100) ** 0.5
    assert theta.tolist() == pytest.approx([-beta, 2 * beta])
    assert rate().item() == pytest.approx(0.1)
    assert theorem1_rate(0.5, 100) == pytest.approx(0.5 * 4.605170186 / 100)
    assert theorem1_policy_rate(1.0, 2) == 0


@pytest.mark.parametrize("schedule", TRAIN_SCHEDULES[1:])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_other_schedules_are_timms(schedule: str, warmup_epochs: int) -> None:
    optimizer = make_optimizer(BASE, nn.Linear(2, 2))
    own, _ = create_scheduler_v2(
        optimizer,
        schedule,
        num_epochs=5 - warmup_epochs,
        decay_epochs=(5 - warmup_epochs) * 0.3,
        decay_rate=0.1,
        warmup_epochs=warmup_epochs,
        warmup_lr=0.0,
        warmup_prefix=True,
        **({"stable_timescale": 1} if schedule == "rsqrt" else {}),
        step_on_epochs=False,
        updates_per_epoch=PER_EPOCH,
    )
    expected = []
    for step in range(5 * PER_EPOCH):
        own.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    found = rates(schedule=schedule, warmup_epochs=warmup_epochs)
    assert found == pytest.approx(expected, rel=1e-12)
    assert max(found) == pytest.approx(0.3)
    assert min(found[PER_EPOCH:]) < 0.29 or schedule == "constant"


@pytest.mark.parametrize("answer", [(None, 5), TypeError("unexpected keyword argument")])
def test_a_schedule_of_a_newer_timm_says_so(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mapolicy.training.optim.create_scheduler_v2", Mock(side_effect=[answer]))
    with pytest.raises(UsageError, match=r"schedule rsqrt: timm \S+ does not have it; install timm 1\.0\.31"):
        rates(schedule="rsqrt")


def test_a_schedule_that_does_not_fit_says_so() -> None:
    with pytest.raises(UsageError, match=r"schedule wsd: .*requires"):
        rates(schedule="wsd", decay_epochs=30.0)
