"""`mapolicy bench step`: every candidate does the work that its name says, on its own copies."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from mapolicy.bench import memory, step, step_case
from mapolicy.bench.double_backward import DoubleBackwardStep
from mapolicy.bilevel.bilevel_step import BilevelStep
from mapolicy.errors import EnvironmentFault, UsageError
from tests.bench.configs import search_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case() -> step_case.StepCase:
    return step_case.StepCase.build(search_config(), CPU)


def double(case: step_case.StepCase) -> step_case.StepCase:
    names = ("network", "policy", "images", "embedding", "validation_images")
    return replace(case, **{name: copy.deepcopy(getattr(case, name)).double() for name in names})


@pytest.mark.parametrize("alpha", ["scalar", "per-layer"])
def test_double_backward_is_the_same_step(case: step_case.StepCase, alpha: str) -> None:
    """Gradients of theta and alpha, and after the step all parameters, momentum and running statistics: float64."""
    exact_case = double(case)
    outcomes = []
    for kind in (BilevelStep, DoubleBackwardStep):
        parts = exact_case.learner(case.config.with_changes(alpha=alpha, alpha_initial=0.3))
        parts["rate"].double()
        torch.manual_seed(0)
        nn.init.normal_(parts["policy"].output.weight, std=0.3)
        kind(**parts)(*exact_case.arguments(0))
        gradients = [parameter.grad for parameter in (*parts["policy"].parameters(), *parts["rate"].parameters())]
        state = parts["network"].state_dict() | {f"policy.{k}": v for k, v in parts["policy"].state_dict().items()}
        momenta = [entry["momentum_buffer"] for entry in parts["optimizer"].state_dict()["state"].values()]
        outcomes.append((gradients, [*state.values(), *momenta]))
    (gradients, states), (expected, expected_states) = outcomes
    for got, wanted in zip(gradients, expected, strict=True):
        assert wanted.norm() > 0
        assert (got - wanted).norm() < 1e-9 * wanted.norm()
    for got, wanted in zip(states, expected_states, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


def test_the_plain_step_is_sgd_on_the_mean_loss(case: step_case.StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    network = copy.deepcopy(case.network)
    # The candidate copies the network; here it shall work on this one.
    monkeypatch.setattr(step_case.copy, "deepcopy", lambda module: network)
    work = step_case.candidate(case, step_case.PLAIN).work
    monkeypatch.undo()
    work(0)
    twin = copy.deepcopy(case.network).train()
    loss = nn.functional.cross_entropy(twin(case.images), case.labels)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    config = case.config
    clipped = min(1.0, config.clip_norm / float(torch.stack([g.norm() for g in gradients]).norm()))
    for before, gradient, after in zip(twin.parameters(), gradients, network.parameters(), strict=True):
        decayed = clipped * gradient + config.weight_decay * before
        expected = before - config.learning_rate * (1 + config.momentum) * decayed  # Nesterov's first step
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)


def test_candidates_share_nothing(case: step_case.StepCase) -> None:
    before = [tensor.clone() for module in (case.network, case.policy) for tensor in module.state_dict().values()]
    for name in (step_case.PLAIN, "exact", step_case.DOUBLE_BACKWARD):
        step_case.candidate(case, name).work(0)
    after = [tensor for module in (case.network, case.policy) for tensor in module.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in case.network.parameters())


def test_step_rows_and_variants() -> None:
    variants = {"exact": {}, "per-layer": {"alpha": "per-layer"}}
    document = step.measure_step(search_config(), 2, variants, memory=False).document()
    assert [row["what"] for row in document["rows"]] == ["plain", "exact", "per-layer", "double_backward"]
    assert {row["against"] for row in document["rows"]} == {"plain"}
    assert document["rows"][0]["ratio"] == 1
    assert document["settings"]["variants"] == variants
    assert "peak_mib" not in document["rows"][0]


def test_settings_of_another_iteration_are_a_row_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The named rows stay what their names say."""
    seen = []
    monkeypatch.setattr(
        step_case, "BilevelStep", lambda **parts: seen.append(parts["options"]) or (lambda *batch: None)
    )
    rows = step.measure_step(search_config(simultaneous=True), 1, memory=False).rows
    named = ["exact", "fast", "low_memory", "alignment", "alignment_third"]
    assert [row.what for row in rows] == ["plain", *named, "as_set", "double_backward"]
    assert [(options.simultaneous, options.low_memory, options.equal_weights) for options in seen] == [
        (False, False, False),
        (False, False, False),
        (False, True, False),
        (False, False, True),
        (False, False, True),
        (True, False, False),
    ]


@pytest.mark.parametrize(
    ("settings", "compiled", "message"),
    [
        ({"extractor": "own"}, False, r"^--set extractor=own: not a part of the step that is measured here; "),
        ({"schedule": "theorem1", "alpha_learning_rate": 0}, False, r"^--set schedule=theorem1: "),
        ({"copies": 2}, False, r"^--set copies=2: .*; raise --batch-size$"),
        ({"reject_below_mean": True}, True, r"^--compile: the iteration is not the paper's; "),
        ({"precision": "bfloat16"}, True, r"^--compile: it computes in bfloat16; "),
    ],
)
def test_what_the_step_does_not_measure_is_refused(settings: dict[str, object], compiled: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        step.measure_step(search_config(**settings), 1, compiled=compiled, memory=False)


def test_a_variant_changes_the_step(case: step_case.StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(step_case, "BilevelStep", lambda **parts: seen.append(parts["rate"]().shape))
    step_case.candidate(case, "layers", {"layers": {"alpha": "per-layer"}})
    assert seen == [(len(list(case.network.parameters())),)]


def test_compiled_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: compiled.append(network) or network)
    rows = step.measure_step(search_config(), 1, compiled=True, memory=False).rows
    assert [row.what for row in rows[-2:]] == ["compiled", "plain_compiled"]
    assert len(compiled) == 2


def test_a_compiler_that_fails_is_one_line(case: step_case.StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.BackendCompilerFailed(torch.compile, RuntimeError("no C++ compiler\nat all"), None)

    monkeypatch.setattr(torch, "compile", lambda network: broken)
    with pytest.raises(EnvironmentFault, match=r"^--compile: torch cannot compile here \(no C\+\+ compiler\)"):
        step_case.candidate(case, step_case.PLAIN_COMPILED).work(0)


def test_memory_is_measured_in_another_process() -> None:
    config = search_config(image_size=16, batch_size=64)
    plain = memory.peak_of_process(step.step_peak, config, step_case.PLAIN, step_case.VARIANTS)
    if not memory.RESET.exists():
        assert plain is None
        return
    assert plain is not None
    # The outputs of the first convolution alone: 16 channels of 16 x 16, float32.
    assert plain > 64 * 16 * 16 * 16 * 4


def test_unknown_network_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="wrn99_9"):
        step.measure_step(search_config(proxy="wrn99_9"), 1, memory=False)
