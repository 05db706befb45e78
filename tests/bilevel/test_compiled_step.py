"""The compiled iteration against the eager one, in float64; `torch.compile` without a C++ compiler."""

import copy

import pytest
import timm
import torch
from torch import nn

import mapolicy.models  # noqa: F401 - registers wrn10_1
from mapolicy import PolicyBundle, search_policy, train_network
from mapolicy.bilevel import build_step as step_choice
from mapolicy.bilevel.bilevel_step import BilevelStep, StepRecord
from mapolicy.bilevel.build_step import Choice, make_step
from mapolicy.bilevel.compiled_step import CompiledStep
from mapolicy.bilevel.inner_rate import InnerRate
from mapolicy.bilevel.options import StepOptions
from mapolicy.errors import EnvironmentFault
from mapolicy.policy.network import PolicyNetwork
from mapolicy.training.callbacks import Reporter
from mapolicy.transforms.space import EMBEDDING_WIDTH

CLASSES = 5


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` gives the function itself: what it computes is what is looked at."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


class Case:
    """What a step is made of, and batches that differ from call to call."""

    def __init__(self, per_layer: bool = False, features: bool = False, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(3)
        self.network = timm.create_model("wrn10_1", num_classes=CLASSES, in_chans=1).to(dtype)
        self.policy = PolicyNetwork(self.network.head_hidden_size).to(dtype)
        nn.init.normal_(self.policy.output.weight, std=0.3)
        tensors = len(list(self.network.parameters())) if per_layer else None
        self.rate = InnerRate(0.3, tensors).to(dtype)
        if per_layer:
            self.rate.log_alpha.data += torch.randn_like(self.rate.log_alpha)
        self.features, self.dtype = features, dtype
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        self.policy_optimizer = torch.optim.AdamW(
            [
                {"params": list(self.policy.parameters()), "lr": 0.01, "weight_decay": 3.0},
                {"params": [self.rate.log_alpha], "lr": 0.02, "weight_decay": 0.0},
            ]
        )

    def twin(self) -> "Case":
        return copy.deepcopy(self)

    def parts(self) -> dict:
        names = ("network", "policy", "rate", "optimizer", "policy_optimizer")
        return {name: getattr(self, name) for name in names} | {"options": StepOptions(clip_norm=0.5)}

    def run(self, step: BilevelStep, call: int, learns: bool = True) -> StepRecord:
        draws = torch.Generator().manual_seed(call)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draws, dtype=self.dtype)

        def labels(count: int) -> torch.Tensor:
            return torch.randint(CLASSES, (count,), generator=draws)

        batch = noise(6, 1, 8, 8), labels(6), noise(6, EMBEDDING_WIDTH).abs() * 11
        held_out = noise(7, 1, 8, 8), labels(7)
        features = noise(6, self.network.head_hidden_size) if self.features else None
        return step(*batch, held_out if learns else None, noise_seed=call, features=features)

    def state(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint would hold."""
        found = {}
        for name in ("network", "policy", "rate"):
            found |= {f"{name}.{key}": tensor for key, tensor in getattr(self, name).state_dict().items()}
        for name in ("optimizer", "policy_optimizer"):
            for number, entries in getattr(self, name).state_dict()["state"].items():
                found |= {f"{name}.{number}.{key}": tensor for key, tensor in entries.items()}
        return found


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **within: float) -> None:
    assert list(got) == list(expected)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], msg=lambda text, name=name: f"{name}: {text}", **within)


def tensors(record: StepRecord) -> dict[str, torch.Tensor]:
    outcome = record.hypergradient
    assert outcome is not None
    plain = {name: getattr(record, name) for name in ("loss", "raw", "weights", "alpha", "theta_gradient")}
    gradient = {f"gradient.{number}": tensor for number, tensor in enumerate(outcome.gradient)}
    derivatives = {f"d_{name}": getattr(outcome, name) for name in ("weights", "alpha", "validation_loss")}
    return plain | derivatives | gradient


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("features", [False, True], ids=["own-features", "given-features"])
@pytest.mark.parametrize("per_layer", [False, True], ids=["scalar", "per-layer"])
def test_iterations_equal_the_eager_ones(per_layer: bool, features: bool) -> None:
    case = Case(per_layer, features)
    before, other = {name: tensor.clone() for name, tensor in case.state().items()}, case.twin()
    eager, step = BilevelStep(**case.parts()), CompiledStep(**other.parts())
    for call in range(4):
        learns = call != 2  # the weighted step alone, between two hypergradients
        expected, got = case.run(eager, call, learns), other.run(step, call, learns)
        if learns:
            assert_equal(tensors(got), tensors(expected), rtol=1e-9, atol=1e-12)
        assert_equal(other.state(), case.state(), rtol=1e-9, atol=1e-12)
    for name, tensor in before.items():
        assert not torch.equal(case.state()[name], tensor), f"{name}: nothing has moved"


@pytest.mark.usefixtures("uncompiled")
def test_adam_goes_on_from_a_checkpoint() -> None:
    case = Case()
    case.run(BilevelStep(**case.parts()), 0)
    other = case.twin()
    other.policy_optimizer.load_state_dict(copy.deepcopy(case.policy_optimizer.state_dict()))
    case.run(BilevelStep(**case.parts()), 1)
    other.run(CompiledStep(**other.parts()), 1)
    assert_equal(other.state(), case.state(), rtol=1e-9, atol=1e-12)


def test_torch_takes_the_iteration_as_one_graph() -> None:
    case = Case()
    other = case.twin()
    eager, step = BilevelStep(**case.parts()), CompiledStep(**other.parts(), backend="eager", strict=True)
    for call in range(2):
        case.run(eager, call)
        other.run(step, call)
    assert_equal(other.state(), case.state(), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_inductor_gives_the_same() -> None:
    case = Case(dtype=torch.float32)
    other = case.twin()
    eager, step = BilevelStep(**case.parts()), CompiledStep(**other.parts(), strict=True)
    for call in range(2):
        case.run(eager, call)
        other.run(step, call)
    assert_equal(other.state(), case.state(), rtol=1e-3, atol=1e-4)


def broken(graph: object, inputs: object) -> None:
    raise RuntimeError("no way\nat all")


def test_a_failure_to_compile_is_told_and_the_run_goes_on() -> None:
    case, notes = Case(), []
    other = case.twin()
    step = CompiledStep(**other.parts(), on_note=notes.append, backend=broken)
    for call in range(2):
        case.run(BilevelStep(**case.parts()), call)
        other.run(step, call)
    assert_equal(other.state(), case.state(), rtol=1e-9, atol=1e-12)
    (note,) = notes
    assert "cannot compile" in note
    assert "\n" not in note
    assert step.how == "not compiled (torch cannot)"


def test_a_failure_to_compile_is_an_error_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no way\nat all")  # what torch raises in the test above

    monkeypatch.setattr(torch, "compile", lambda function, **options: failing)
    case = Case()
    with pytest.raises(EnvironmentFault, match=r"^compile: torch cannot compile the iteration \(no way\); .*never$"):
        case.run(CompiledStep(**case.parts(), strict=True), 0)


def test_what_cannot_be_compiled_is_no_compiled_step() -> None:
    parts = Case().parts()
    with pytest.raises(ValueError, match="paper"):
        CompiledStep(**parts | {"options": StepOptions(simultaneous=True)})
    with pytest.raises(ValueError, match="Adam"):
        CompiledStep(**parts | {"policy_optimizer": parts["optimizer"]})
    assert type(make_step(Choice(False, "why"), print, strict=False, **parts)) is BilevelStep


class Listener(Reporter):
    def on_start(self, what, iterations, facts, seconds) -> None:
        self.facts = facts

    def on_complete(self, result) -> None:
        self.result = result


@pytest.mark.usefixtures("uncompiled")
def test_a_run_says_and_records_its_choice(
    make_search_config, make_train_config, monkeypatch, interrupted_after, tmp_path
) -> None:
    monkeypatch.setattr(step_choice, "has_compiler", lambda: True)
    config, listener = make_search_config(epochs=1, compile="always"), Listener()
    bundle = search_policy(config, listener)
    assert listener.facts["step"] == listener.result["step"] == "compiled (as asked for)"
    assert bundle.manifest.search.settings["compile"] == "always"
    with interrupted_after(2):
        search_policy(config, run_dir=tmp_path / "run")
    assert search_policy(config, run_dir=tmp_path / "run", resume=True).to_bytes() == bundle.to_bytes()

    eager = search_policy(config.with_changes(compile="never"), listener)
    assert listener.result["step"] == "not compiled (as asked for)"
    # In float32 Adam turns rounding into steps where a gradient is nearly none; alpha sums over all of w.
    torch.testing.assert_close(bundle.alpha, eager.alpha, rtol=1e-2, atol=0.0)

    arguments = {"arch": "wrn10_1", "epochs": 1, "mode": "finetune", "compile": "always"}
    refined = train_network(make_train_config(**arguments), bundle, listener).refined
    assert isinstance(refined, PolicyBundle)
    assert listener.facts["step"] == listener.result["step"] == "compiled (as asked for)"
