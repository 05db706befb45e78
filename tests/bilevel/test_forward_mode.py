"""Directional derivatives against torch's own forward mode and against closed forms, in float64."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp

import mapolicy.models  # noqa: F401 - registers wrn10_1
from mapolicy.bilevel import forward_mode
from mapolicy.bilevel.forward_mode import (
    ReplayError,
    agrees_with_torch,
    directional_derivative,
    recorded,
    torchs_derivative,
)
from mapolicy.models.features import running_statistics_kept


class Odd(nn.Module):
    """What the replay has rules for, in every form: no bias, no affine, a frozen weight, changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=True)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.frozen = nn.Conv2d(4, 4, 1, groups=2, bias=False).requires_grad_(False)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3, bias=False)
        self.out = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.plain(self.first(x)), inplace=True)
        y = self.frozen(x)
        y += x  # in place, on a recorded value
        y = F.relu(self.norm(y)).mean((2, 3))
        return self.out(torch.tanh(self.last(y)))


def losses_of(network: nn.Module, images: torch.Tensor):
    labels = torch.arange(len(images)) % 3

    def losses(at) -> torch.Tensor:
        return F.cross_entropy(functional_call(network, dict(at), (images,)), labels, reduction="none")

    return losses


def trained_parameters(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}


@pytest.fixture
def odd():
    torch.manual_seed(0)
    network = Odd().double().train()
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    parameters = trained_parameters(network)
    direction = {name: torch.randn_like(tensor) for name, tensor in parameters.items()}
    with running_statistics_kept(network):
        yield losses_of(network, images), parameters, direction


def test_a_product_has_its_closed_form() -> None:
    x, w, v = torch.randn(4, 3).double(), torch.randn(2, 3).double(), torch.randn(2, 3).double()

    def function(at):
        return F.linear(x, at["w"]).square().sum(1)

    expected = 2 * ((x @ w.T) * (x @ v.T)).sum(1)
    torch.testing.assert_close(directional_derivative(function, {"w": w}, {"w": v}), expected)
    with recorded() as recording:
        function({"w": w.requires_grad_()})
    torch.testing.assert_close(directional_derivative(function, {"w": w}, {"w": v}, recording), expected)


def test_a_function_that_does_not_depend_on_the_parameters_has_derivative_zero() -> None:
    w = torch.ones(2)
    assert directional_derivative(lambda at: torch.ones(3), {"w": w}, {"w": w}).tolist() == [0, 0, 0]


def test_replayed_equals_torchs_forward_mode(odd) -> None:
    losses, parameters, direction = odd
    primals = {name: tensor.detach() for name, tensor in parameters.items()}
    expected = jvp(losses, (primals,), (direction,))[1]
    torch.testing.assert_close(torchs_derivative(losses, parameters, direction), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(directional_derivative(losses, parameters, direction), expected, rtol=1e-10, atol=1e-12)
    assert agrees_with_torch(losses, parameters)
    with recorded() as recording:
        kept = losses(parameters)
    assert [entry.value is None for entry in recording.entries].count(True) == 2, "changed in place"
    torch.testing.assert_close(
        directional_derivative(losses, parameters, direction, recording), expected, rtol=1e-10, atol=1e-12
    )
    assert agrees_with_torch(losses, parameters, recording)
    assert kept.requires_grad


def test_recording_changes_neither_values_nor_gradients(odd) -> None:
    losses, parameters, _ = odd
    plain = losses(parameters)
    with recorded() as recording:
        kept = losses(parameters)
    assert torch.equal(plain, kept)
    expected = torch.autograd.grad(plain.sum(), list(parameters.values()))
    first = torch.autograd.grad(kept.sum(), list(parameters.values()), retain_graph=True)
    agrees_with_torch(losses, parameters, recording)
    again = torch.autograd.grad(kept.sum(), list(parameters.values()))
    for wanted, one, two in zip(expected, first, again, strict=True):
        assert torch.equal(wanted, one)
        assert torch.equal(wanted, two), "the replay has changed what the graph holds"


def test_another_network_or_other_values_do_not_agree(odd) -> None:
    losses, parameters, _ = odd
    with recorded() as recording:
        losses(parameters)
    recording.entries[0].value.mul_(1.5)
    assert not agrees_with_torch(losses, parameters, recording)
    other = timm.create_model("wrn10_1", num_classes=3).double()
    other_losses = losses_of(other, torch.randn(4, 3, 8, 8, dtype=torch.float64))
    assert not agrees_with_torch(other_losses, trained_parameters(other), recording)
    with pytest.raises(ReplayError, match="calls linear where it did not before"):
        directional_derivative(
            lambda at: F.linear(at["w"], at["w"]), {"w": torch.eye(2)}, {"w": torch.eye(2)}, recording
        )


def test_a_value_that_is_missing_and_matters_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """tanh's derivative comes from its own result, so the graph does not hold what it was taken of."""
    monkeypatch.setattr(forward_mode, "SMALL", 0)
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double()
    x = torch.randn(4, 3, dtype=torch.float64)

    def function(at) -> torch.Tensor:
        return torch.tanh(F.linear(x, at["weight"], at["bias"])).sum(1)

    at = dict(layer.named_parameters())
    with recorded() as recording:
        function(at)
    assert recording.entries[0].value is None
    assert not agrees_with_torch(function, at, recording)
    assert directional_derivative(function, at, at, recording).isnan().all()


@pytest.mark.parametrize("small", [0, 2**20])
def test_a_recording_holds_no_more_than_the_graph(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """But for what is small: sums of residual branches are kept by nobody."""
    monkeypatch.setattr(forward_mode, "SMALL", small)
    network = timm.create_model("wrn10_1", num_classes=3).train()
    images = torch.randn(4, 3, 16, 16)
    losses = losses_of(network, images)
    parameters = trained_parameters(network)
    kept = set()

    with recorded() as recording:
        graph = losses(parameters)
    pending = [graph.grad_fn]
    while pending:
        node = pending.pop()
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(tensor := getattr(node, name), torch.Tensor):
                kept.add(tensor.untyped_storage().data_ptr())
        pending += [parent for parent, _ in node.next_functions if parent is not None]
    beyond = [
        entry
        for entry in recording.entries
        if entry.value is not None and entry.value.untyped_storage().data_ptr() not in kept
    ]
    assert len(kept) > 20
    assert bool(beyond) == (small > 0)
