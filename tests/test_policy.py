"""The policy network against the paper's description, computed by hand."""

import pytest
import torch

from mapolicy.policy import PolicyNetwork, normalise_weights, reject_below_mean


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


def test_rejection_leaves_out_what_lies_below_the_mean() -> None:
    kept = reject_below_mean(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert kept.tolist() == pytest.approx([0, 0, 0.5, 0.5])
    for count in (3, 7, 49):  # rounding puts the mean of equal weights above them
        assert reject_below_mean(torch.full((count,), 1 / count)).tolist() == pytest.approx([1 / count] * count)


def test_unknown_input_is_refused() -> None:
    with pytest.raises(ValueError, match="policy_input"):
        PolicyNetwork(7, policy_input="neither")
