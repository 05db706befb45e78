"""Checkpoints: what goes in comes out; what is no checkpoint is refused."""

import pickle

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from mapolicy.errors import InputError
from mapolicy.policy.sampler import TransformationSampler
from mapolicy.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from mapolicy.transforms.transformation import Transformation


def state(seed: int, steps: int) -> RunState:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    policy = nn.Linear(2, 1)
    optimizers = {
        "network": torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        "policy": torch.optim.Adam(policy.parameters(), lr=0.1),
    }
    sampler = TransformationSampler(0.1, 1, 3)
    for _ in range(steps):
        (network(torch.randn(8, 3)).square().sum() + policy(torch.randn(8, 2)).sum()).backward()
        for optimizer in optimizers.values():
            optimizer.step()
        pair = torch.randint(0, 14, (2, 8))
        sampler.record(Transformation.draw_magnitudes(*pair, torch.Generator()).pair, torch.rand(8))
    return RunState({"network": network, "policy": policy}, optimizers, sampler)


def test_state_round_trips_through_a_file(tmp_path) -> None:
    old, new = state(0, steps=4), state(1, steps=0)
    tensors = old.tensors()
    save_checkpoint(tmp_path / "c.safetensors", tensors, {"iteration": 4, "config": {"seed": 0}})
    loaded, facts = load_checkpoint(tmp_path / "c.safetensors")
    assert facts == {"iteration": 4, "config": {"seed": 0}}
    new.restore(loaded, facts["iteration"])
    again = new.tensors()
    assert set(again) == set(tensors)
    assert {name.split(".")[0] for name in tensors} == {"module", "optimizer", "sampler"}
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor), name
        assert again[name].dtype == tensor.dtype
    assert new.sampler is not None
    assert new.sampler.iteration == 4


def test_the_optimisers_state_lies_in_memory_as_it_did() -> None:
    """In another order than its parameter's, an update rounds differently and a resumed run leaves its path."""

    def trained(steps: int) -> RunState:
        torch.manual_seed(0)
        network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(steps):
            network(torch.randn(2, 3, 8, 8)).square().sum().backward()
            optimizer.step()
        return RunState({"network": network}, {"network": optimizer})

    old, new = trained(2), trained(0)
    new.restore(old.tensors(), 2)
    layouts = []
    for state in (old, new):
        optimizer = state.optimizers["network"]
        layouts.append([values["momentum_buffer"].stride() for values in optimizer.state.values()])
    assert layouts[0] == layouts[1]
    assert layouts[1][0] == (27, 1, 9, 3), "channels-last"


@pytest.mark.parametrize("name", ["adamw", "nadamw", "adan", "lamb", "lion", "lookahead_sgd", "lookahead_adamw"])
def test_timms_optimisers_go_on_as_if_they_had_not_stopped(name: str) -> None:
    """Some keep a counter beside their parameters; a restored one is put back, also to before the first step."""

    def begun() -> RunState:
        torch.manual_seed(0)
        network = nn.Linear(4, 3)
        return RunState({"network": network}, {"network": create_optimizer_v2(network, opt=name, lr=0.01)})

    def stepped(one: RunState, steps: int) -> list[torch.Tensor]:
        network, optimizer = one.modules["network"], one.optimizers["network"]
        for _ in range(steps):
            optimizer.zero_grad()
            network(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        return [parameter.detach().clone() for parameter in network.parameters()]

    straight = stepped(begun(), 9)
    first = begun()
    fresh = first.tensors()
    stepped(first, 4)
    stopped, second = first.tensors(), begun()
    second.restore(stopped, 4)
    for found in (stepped(second, 5), stepped(first, 5)):
        assert all(torch.equal(one, other) for one, other in zip(straight, found, strict=True))
    first.restore(fresh, 0)
    assert all(torch.equal(one, other) for one, other in zip(straight, stepped(first, 9), strict=True))


def test_tensors_are_a_copy() -> None:
    one = state(0, steps=1)
    tensors = one.tensors()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for parameter in one.modules["network"].parameters():
        parameter.data.add_(1)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())


def test_another_networks_state_is_refused() -> None:
    tensors = state(0, steps=1).tensors()
    other = RunState({"network": nn.Linear(5, 5)}, {})
    with pytest.raises(InputError, match="checkpoint"):
        other.restore(tensors, 1)


class Payload:
    def __reduce__(self):
        return (print, ("the payload ran",))


@pytest.mark.parametrize("kind", ["pickle", "torch", "truncated", "empty", "other safetensors", "garbage", "a list"])
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path, capsys: pytest.CaptureFixture, kind: str) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, state(0, steps=1).tensors(), {"iteration": 1})
    match kind:
        case "pickle":
            path.write_bytes(pickle.dumps(Payload()))
        case "torch":
            torch.save({"x": torch.ones(2)}, path)
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "empty":
            path.write_bytes(b"")
        case "other safetensors":
            from safetensors.torch import save

            path.write_bytes(save({"x": torch.ones(2)}))
        case "a list":
            save_checkpoint(path, state(0, steps=1).tensors(), [1])  # type: ignore[arg-type]
        case "garbage":
            path.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="no whole checkpoint") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_missing_checkpoint_is_one_line(tmp_path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_checkpoint(tmp_path / "none.safetensors")
