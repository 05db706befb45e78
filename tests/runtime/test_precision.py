"""Half precision: where it is used, what it costs in accuracy, where it is refused."""

import pytest
import torch
from torch import Tensor

from mapolicy import search_policy, train_network
from mapolicy.bilevel.bilevel_step import BilevelStep, StepRecord
from mapolicy.bilevel.build_step import choose
from mapolicy.bilevel.inner_rate import InnerRate
from mapolicy.bilevel.options import StepOptions
from mapolicy.errors import InputError, UsageError
from mapolicy.models.factory import build_network
from mapolicy.policy.network import PolicyNetwork
from mapolicy.runtime.precision import at_least_float32, autocast
from mapolicy.transforms.space import EMBEDDING_WIDTH
from tests.helpers.ranks import on_ranks

CPU = torch.device("cpu")


def test_products_alone_are_computed_in_half_precision() -> None:
    matrix = torch.randn(4, 4)
    with autocast("float32", CPU):
        assert (matrix @ matrix).dtype == torch.float32
    with autocast("bfloat16", CPU):
        assert (matrix @ matrix).dtype == torch.bfloat16
        assert matrix.exp().dtype == torch.float32
    assert at_least_float32(matrix.bfloat16()).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        given = matrix.to(dtype)
        assert at_least_float32(given) is given


def record(precision: str, accumulate: int = 1) -> tuple[StepRecord, list[Tensor], list[torch.dtype]]:
    """A step of a network, what its parameters are after it, and in what its convolutions computed."""
    network = build_network("wrn10_1", {}, 4, 1, 0, CPU)
    torch.manual_seed(1)
    policy = PolicyNetwork(network.head_hidden_size)
    torch.nn.init.normal_(policy.output.weight, std=0.3)
    optimizers = (torch.optim.SGD(module.parameters(), lr=0.01) for module in (network, policy))
    options = StepOptions(precision=precision, accumulate=accumulate)
    step = BilevelStep(network, policy, InnerRate(0.1), *optimizers, options)
    seen: list[torch.dtype] = []
    network.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(4, (64,))
    validation = torch.randn(64, 1, 8, 8), torch.randint(4, (64,))
    got = step(images, labels, torch.rand(64, EMBEDDING_WIDTH) * 11, validation, noise_seed=5)
    return got, [*network.parameters(), *policy.parameters()], seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_hypergradient_in_half_precision_is_nearly_that_in_single(accumulate: int) -> None:
    expected, _, _ = record("float32", accumulate)
    got, parameters, seen = record("bfloat16", accumulate)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert expected.hypergradient is not None
    assert got.hypergradient is not None
    pairs = {
        "theta": (got.theta_gradient, expected.theta_gradient),
        "s_i": (got.hypergradient.weights, expected.hypergradient.weights),
        "g": tuple(torch.cat([t.flatten() for t in one.hypergradient.gradient]) for one in (got, expected)),
    }
    for name, (found, exact) in pairs.items():
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found, exact, dim=0) > 0.99, name
        assert not torch.equal(found, exact), name


def test_both_stages_run_in_half_precision(make_search_config, make_train_config, bundle) -> None:
    config = make_search_config(epochs=1, precision="bfloat16")
    found = search_policy(config)
    assert found.manifest.search.settings["precision"] == "bfloat16"
    assert {tensor.dtype for name, tensor in found.tensors.items() if name.startswith("policy.")} == {torch.float32}
    single = search_policy(config.with_changes(precision="float32"))
    assert not torch.equal(found.tensors["policy.output.weight"], single.tensors["policy.output.weight"])
    for mode in ("frozen", "finetune"):
        result = train_network(make_train_config(arch="wrn10_1", epochs=1, precision="bfloat16", mode=mode), bundle)
        assert all(tensor.isfinite().all() for tensor in result.network.state_dict().values())


def test_synchronised_statistics_in_half_precision(make_search_config, tmp_path) -> None:
    config = make_search_config(epochs=1, precision="bfloat16", batch_norm="synchronised", validation_batch_size=128)

    def found() -> str:
        return search_policy(config).digest

    first, second = on_ranks(2, found, tmp_path)
    assert first == second


def test_what_is_not_built_is_refused(make_search_config) -> None:
    with pytest.raises(InputError, match=r"precision: 'float16' is not one of float32, bfloat16$"):
        make_search_config(precision="float16")
    config = make_search_config(precision="bfloat16", compile="always")
    with pytest.raises(UsageError, match="'always' is not possible: it computes in bfloat16"):
        choose(config, torch.nn.Linear(1, 1), 1, 10, CPU)
