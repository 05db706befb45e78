"""The policy network against the paper's description, computed by hand."""

import pytest
import torch

from mapolicy.errors import UsageError
from mapolicy.policy.network import (
    SATURATED,
    PolicyNetwork,
    limited,
    normalise_weights,
    reject_below_mean,
    weights_of_logits,
    weights_of_slopes,
)


@pytest.mark.parametrize(("width", "count"), [(640, 67_201), (128, 16_001)])
def test_parameter_count_is_the_papers(width: int, count: int) -> None:
    assert sum(parameter.numel() for parameter in PolicyNetwork(width).parameters()) == count


@pytest.mark.parametrize("policy_input", ["both", "features", "embedding"])
def test_output_is_two_branches_and_a_sigmoid(policy_input: str) -> None:
    torch.manual_seed(0)
    policy = PolicyNetwork(7, policy_input=policy_input)
    torch.nn.init.normal_(policy.output.weight)
    features, embedding = torch.randn(5, 7), torch.rand(5, 28) * 11
    state = policy.state_dict()
    branches = []
    if policy_input != "embedding":
        hidden = features @ state["feature_layer.weight"].T + state["feature_layer.bias"]
        branches.append(hidden.clamp(min=0))
    if policy_input != "features":
        hidden = embedding @ state["embedding_layer.weight"].T + state["embedding_layer.bias"]
        branches.append(hidden.clamp(min=0))
    logit = torch.cat(branches, 1) @ state["output.weight"].T + state["output.bias"]
    expected = 1 / (1 + torch.exp(-logit[:, 0]))
    torch.testing.assert_close(policy(features, embedding), expected)
    if policy_input == "features":
        assert torch.equal(policy(features, embedding), policy(features, torch.zeros_like(embedding)))
    if policy_input == "embedding":
        assert torch.equal(policy(features, embedding), policy(torch.zeros_like(features), embedding))


def test_all_samples_start_with_the_same_weight() -> None:
    raw = PolicyNetwork(7)(torch.randn(9, 7), torch.rand(9, 28))
    assert raw.tolist() == [0.5] * 9
    assert normalise_weights(raw).tolist() == pytest.approx([1 / 9] * 9)


def test_weights_sum_to_one_and_keep_their_proportions() -> None:
    raw = torch.tensor([0.1, 0.2, 0.7])
    weights = normalise_weights(raw)
    assert weights.tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert normalise_weights(raw / 2).tolist() == pytest.approx(weights.tolist())


def test_weights_of_logits_are_the_hot_paths_to_the_bit() -> None:
    draws = torch.Generator().manual_seed(0)
    for scale in (0.1, 3.0, 30.0, 300.0):
        logits = torch.randn(64, generator=draws) * scale
        assert torch.equal(weights_of_logits(logits), normalise_weights(torch.sigmoid(logits))), scale
    barely = torch.full((5,), float(torch.logit(torch.tensor(SATURATED * 2, dtype=torch.float64))))
    barely[0] -= 20
    assert torch.equal(weights_of_logits(barely), normalise_weights(torch.sigmoid(barely)))


@pytest.mark.parametrize(
    "logits",
    [
        [-70.0, -71.0, -75.5], [-104.0, -104.5, -106.0], [-1e6, -1e6 - 1, -1e6 - 2], [-1e6] * 4, [-1e30, -2e30],
        [-3e38] * 2, [-69.5, -1e6],
    ],
)  # fmt: skip
def test_a_saturated_policys_weights_are_their_limit(logits: list[float]) -> None:
    """In float32 all sigmoids are 0, or have lost most of their digits; float64 with the largest taken out is exact."""
    exact = torch.tensor(logits).double()
    expected = torch.exp(torch.nn.functional.logsigmoid(exact) - torch.nn.functional.logsigmoid(exact).max())
    found = weights_of_logits(torch.tensor(logits))
    torch.testing.assert_close(found, (expected / expected.sum()).float(), rtol=1e-5, atol=0)
    assert float(found.sum()) == pytest.approx(1)


def test_rejection_leaves_out_what_lies_below_the_mean() -> None:
    kept = reject_below_mean(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert kept.tolist() == pytest.approx([0, 0, 0.5, 0.5])
    for count in (3, 7, 49):  # rounding puts the mean of equal weights above them
        assert reject_below_mean(torch.full((count,), 1 / count)).tolist() == pytest.approx([1 / count] * count)


def test_limited_weights_stay_within_a_factor_of_the_mean() -> None:
    weights = torch.tensor([0.01, 0.19, 0.2, 0.6])
    found = limited(weights, 2.0)
    expected = torch.tensor([0.125, 0.19, 0.2, 0.5]) / 1.015
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(limited(weights, 100.0), weights)


def test_unknown_input_is_refused() -> None:
    with pytest.raises(ValueError, match="policy_input"):
        PolicyNetwork(7, policy_input="neither")


def test_weights_of_slopes() -> None:
    assert weights_of_slopes(torch.tensor([3.0, -1.0, 1.0, 0.0])).tolist() == [0.75, 0.0, 0.25, 0.0]
    assert weights_of_slopes(torch.tensor([-3.0, -1.0])).tolist() == [0.0, 0.0], "no sample lowers the loss"


def test_a_policy_that_sees_the_loss_sees_nothing_else() -> None:
    policy = PolicyNetwork(7, policy_input="loss")
    torch.nn.init.normal_(policy.output.weight)
    losses = torch.tensor([0.1, 2.0, 0.1])
    found = policy(torch.rand(3, 7), torch.rand(3, 28), losses)
    assert torch.equal(found, policy(torch.rand(3, 0), torch.rand(3, 28), losses))
    assert found[0] == found[2] != found[1]
    with pytest.raises(UsageError, match="which only the network being trained has; use --mode finetune"):
        policy(torch.rand(3, 7), torch.rand(3, 28))
