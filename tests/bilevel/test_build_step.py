"""When the bilevel step is compiled, and why not."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

import mapolicy.models  # noqa: F401 - registers wrn10_1
from mapolicy.bilevel import build_step as step_choice
from mapolicy.bilevel.build_step import WORTH_COMPILING, Choice, choose, find_obstacle
from mapolicy.errors import EnvironmentFault, UsageError

CPU = torch.device("cpu")


def network(**arguments: Any) -> nn.Module:
    return timm.create_model("wrn10_1", in_chans=1, **arguments)


@pytest.mark.parametrize(
    ("change", "iterations", "chosen", "reason"),
    [
        ({}, WORTH_COMPILING, True, "repay"),
        ({}, WORTH_COMPILING - 1, False, "too few to repay"),
        ({"meta_every": 2}, 2 * WORTH_COMPILING - 2, False, "too few to repay"),
        ({"meta_every": 2}, 2 * WORTH_COMPILING - 1, True, "repay"),
        ({"compile": "never"}, WORTH_COMPILING, False, "asked"),
        ({"compile": "always"}, 1, True, "asked"),
        ({"low_memory": True}, WORTH_COMPILING, False, "not the paper's"),
        ({"extractor": "own"}, WORTH_COMPILING, False, "extractor"),
        ({"schedule": "theorem1", "alpha_learning_rate": 0.0}, WORTH_COMPILING, False, "Adam"),
    ],
)
def test_choice(make_search_config, monkeypatch, change: dict, iterations: int, chosen: bool, reason: str) -> None:
    monkeypatch.setattr(step_choice, "has_compiler", lambda: True)
    choice = choose(make_search_config(**change), network(), 1, iterations, CPU)
    assert choice.compiled is chosen
    assert reason in choice.reason


def test_without_a_compiler(make_search_config, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert choose(make_search_config(), network(), 1, WORTH_COMPILING, CPU) == Choice(False, "there is no C++ compiler")
    with pytest.raises(EnvironmentFault, match=r"^compile: there is no C\+\+ compiler"):
        choose(make_search_config(compile="always"), network(), 1, 1, CPU)


def test_always_is_refused_where_it_would_not_be_exact(make_search_config) -> None:
    with pytest.raises(UsageError, match=r"^compile: 'always' is not possible: the network draws noise"):
        choose(make_search_config(compile="always"), network(drop_rate=0.3), 1, 1, CPU)


@pytest.mark.parametrize(
    ("arch", "arguments", "obstacle"),
    [
        ("wrn10_1", {}, None),
        ("wrn10_1", {"drop_rate": 0.3}, "noise"),
        ("resnet10t", {}, None),
        ("resnet10t", {"drop_path_rate": 0.4}, "noise"),
        ("repvit_m0_9", {}, None),
        ("test_vit", {"img_size": 32}, "attention"),
    ],
)
def test_obstacles(arch: str, arguments: dict, obstacle: str | None) -> None:
    model = timm.create_model(arch, in_chans=1, **arguments).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    found = find_obstacle(model, 32, 1)
    assert found is None if obstacle is None else obstacle in (found or "")
    assert not model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class NormalisingHead(nn.Module):
    """Normalises before the feature: two passes of the head would count the batch twice."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(1)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.bn(maps)


def test_a_head_that_normalises_is_an_obstacle() -> None:
    model = NormalisingHead()
    assert "running statistics" in (find_obstacle(model, 4, 1) or "")
    assert model.bn.num_batches_tracked == 0
