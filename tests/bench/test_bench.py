"""The benchmarks: what they compute of times that are given, and that the candidates do the work that they claim."""

import copy
import itertools
import os
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from mapolicy import SearchConfig, Transformation, recipes
from mapolicy.bench import memory, operations, pillow, step, transfer
from mapolicy.bench.double_backward import DoubleBackwardStep
from mapolicy.bench.interleaved import WARM_UP, Candidate, Clock, measure, quartiles
from mapolicy.bench.report import Report
from mapolicy.bench.synthetic import synthetic_images
from mapolicy.bilevel.bilevel_step import BilevelStep
from mapolicy.config import TrainConfig
from mapolicy.errors import EnvironmentFault, TrainingError, UsageError
from mapolicy.policy.frozen import FrozenExtractor
from mapolicy.transforms.space import OPERATION_NAMES

CPU = torch.device("cpu")


class FakeClock:
    """Stands still but for what the candidates' work adds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def clock(self) -> Clock:
        return Clock("seconds that the test makes up", lambda: self.now)

    def candidate(self, what: str, seconds: list[float], calls: int = 1) -> Candidate:
        """Takes these seconds, call by call; the first ones belong to the warm-up."""
        durations = iter(seconds)

        def work(call: int) -> None:
            self.calls.append((what, call))
            self.now += next(durations)

        return Candidate(what, work, calls, {"colour": what})


def test_rounds_are_interleaved_and_the_warm_up_is_not_counted() -> None:
    fake = FakeClock()
    candidates = [fake.candidate("a", [100, 1, 1]), fake.candidate("b", [100, 100, 2, 2, 2, 2], calls=2)]
    told: list[str] = []
    rows = measure(candidates, "a", 2, fake.clock(), told.append, "letters")
    a, b = [("a", 0), ("b", 0), ("b", 1)], [("a", 1), ("b", 2), ("b", 3)]
    assert fake.calls == [*a, *b, ("a", 2), ("b", 4), ("b", 5)]
    assert WARM_UP == 1
    assert told == ["letters: warming up", "letters: round 1 of 2", "letters: round 2 of 2"]
    assert [(row.what, row.median_ms, row.n, row.against) for row in rows] == [("a", 1000, 2, "a"), ("b", 2000, 2, "a")]
    assert rows[1].facts == {"colour": "b"}


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """The machine slows down ten times on the way: b is always 3 a, but for one disturbed round."""
    fake = FakeClock()
    candidates = [fake.candidate("a", [9, 1, 2, 4, 8, 10]), fake.candidate("b", [9, 3, 6, 12, 24, 10])]
    plain, row = measure(candidates, "a", 5, fake.clock())
    assert (row.ratio_low, row.ratio, row.ratio_high) == (3, 3, 3)
    assert (plain.ratio_low, plain.ratio, plain.ratio_high) == (1, 1, 1)
    assert (row.low_ms, row.median_ms, row.high_ms) == (6000, 10_000, 12_000)
    assert (plain.low_ms, plain.median_ms, plain.high_ms) == (2000, 4000, 8000)
    # The ratio of the medians is another number.
    assert row.median_ms / plain.median_ms == 2.5
    assert row.document() == {
        "what": "b", "median_ms": 10_000, "low_ms": 6000, "high_ms": 12_000, "ratio": 3, "ratio_low": 3,
        "ratio_high": 3, "against": "a", "n": 5, "colour": "b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [([7], (7, 7, 7)), ([1, 2], (1.25, 1.5, 1.75)), ([4, 1, 3, 2], (1.75, 2.5, 3.25)), ([5, 1, 4, 2, 3], (2, 3, 4))],
)
def test_quartiles(values: list[float], expected: tuple[float, ...]) -> None:
    assert quartiles(values) == expected


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPU: can't allocate memory")])
def test_memory_that_runs_out_is_one_line(problem: RuntimeError) -> None:
    def work(call: int) -> None:
        raise problem

    with pytest.raises(TrainingError, match=r"^large: memory has run out; lower --batch-size$"):
        measure([Candidate("large", work)], "large", 1, Clock.of(CPU))


def test_other_errors_are_passed_on() -> None:
    def work(call: int) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        measure([Candidate("broken", work)], "broken", 1, Clock.of(CPU))


def test_a_report_names_machine_and_versions() -> None:
    fake = FakeClock()
    rows = measure([fake.candidate("a", [1, 2])], "a", 1, fake.clock())
    document = Report(rows, "fake", {"side": 8}, 3, CPU, ["pillow"], {"kornia": "not installed"}).document()
    assert document["rows"] == [rows[0].document()]
    assert document["hardware"]["threads"] == 3
    assert document["hardware"]["cpu"]
    assert document["hardware"]["memory_gib"] > 0
    assert {"python", "torch", "timm", "mapolicy", "pillow"} <= set(document["versions"])
    assert document["left_out"] == {"kornia": "not installed"}
    assert "gpu" not in document["hardware"]


# Operations.


def test_images_are_smooth_with_noise() -> None:
    images = synthetic_images(8, 32)
    assert images.shape == (8, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(images, synthetic_images(8, 32))
    pixels = images.double()
    steps = (pixels[..., 1:] - pixels[..., :-1]).std()
    assert 5 < steps < 40, "neighbours are alike, but not equal"
    assert pixels.std() > 2 * steps


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_pillows_work_is_ours(name: str) -> None:
    """Each operation on its own, over its whole range and both directions, with a fill colour."""
    images = synthetic_images(21, 19)
    levels = torch.linspace(-10, 10, 21)
    index = torch.full((21,), OPERATION_NAMES.index(name))
    identity = torch.full((21,), OPERATION_NAMES.index("Identity"))
    transformation = Transformation(index, identity, levels, torch.zeros(21))
    fill = torch.tensor([10, 200, 90], dtype=torch.uint8)
    result = pillow.transform_by_pillow(pillow.to_pillow(images), transformation, (10, 200, 90))
    assert torch.equal(pillow.from_pillow(result), transformation.apply(images, fill=fill))
    assert name == "Identity" or not torch.equal(pillow.from_pillow(result), images)


def test_operations_are_measured_and_compared() -> None:
    report = operations.measure_operations([8, 12], 4, 2, 1, CPU)
    document = report.document()
    by_side = {side: [row for row in document["rows"] if row["image_size"] == side] for side in (8, 12)}
    for rows in by_side.values():
        names = [row["what"] for row in rows]
        assert names[:5] == ["mapolicy", "pillow", "torchvision-tensor", "torchvision-pil", "timm"]
        assert len(names) + len(document["left_out"]) == 7
        assert {row["against"] for row in rows} == {"pillow"}
        assert [row["same_work"] for row in rows] == [True, True] + [False] * (len(rows) - 2)
        assert [row.get("equal") for row in rows] == [True, True] + [None] * (len(rows) - 2)
        for row in rows:
            assert row["us_per_image"] == pytest.approx(1000 * row["median_ms"] / 4)
            assert row["images_per_second"] * row["us_per_image"] == pytest.approx(1e6)
    assert document["versions"]["pillow"]


def test_a_difference_from_pillow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dict.fromkeys(pillow.FUNCTIONS, pillow.FUNCTIONS["Identity"])
    monkeypatch.setattr(pillow, "FUNCTIONS", other)
    rows = operations.measure_operations([8], 8, 1, 1, CPU).rows
    assert [row.facts["equal"] for row in rows[:2]] == [False, False]


def test_random_states_and_threads_are_left_as_they_were() -> None:
    def states() -> tuple:
        return torch.get_num_threads(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    before = states()
    operations.measure_operations([8], 4, 1, 2, CPU)
    for one, other in zip(before, states(), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# The step.


def search_config(**changes) -> SearchConfig:
    _, settings = recipes.find("search", "cifar100", "wrn10_1")
    small = {"proxy": "wrn10_1", "image_size": 8, "batch_size": 6, "validation_batch_size": 5, "threads": 1}
    return SearchConfig.from_mapping(settings | small | {"device": "cpu"} | changes)


@pytest.fixture(scope="module")
def case() -> step.StepCase:
    return step.StepCase.build(search_config(), CPU)


def double(case: step.StepCase) -> step.StepCase:
    names = ("network", "policy", "images", "embedding", "validation_images")
    return replace(case, **{name: copy.deepcopy(getattr(case, name)).double() for name in names})


@pytest.mark.parametrize("alpha", ["scalar", "per-layer"])
def test_double_backward_is_the_same_step(case: step.StepCase, alpha: str) -> None:
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


def test_the_plain_step_is_sgd_on_the_mean_loss(case: step.StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    network = copy.deepcopy(case.network)
    # The candidate copies the network; here it shall work on this one.
    monkeypatch.setattr(step.copy, "deepcopy", lambda module: network)
    work = step.candidate(case, step.PLAIN).work
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


def test_candidates_share_nothing(case: step.StepCase) -> None:
    before = [tensor.clone() for module in (case.network, case.policy) for tensor in module.state_dict().values()]
    for name in (step.PLAIN, "exact", step.DOUBLE_BACKWARD):
        step.candidate(case, name).work(0)
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
    monkeypatch.setattr(step, "BilevelStep", lambda **parts: seen.append(parts["options"]) or (lambda *batch: None))
    rows = step.measure_step(search_config(simultaneous=True), 1, memory=False).rows
    assert [row.what for row in rows] == ["plain", "exact", "fast", "low_memory", "as_set", "double_backward"]
    assert [(options.simultaneous, options.low_memory) for options in seen] == [
        (False, False),
        (False, False),
        (False, True),
        (True, False),
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


def test_a_variant_changes_the_step(case: step.StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(step, "BilevelStep", lambda **parts: seen.append(parts["rate"]().shape))
    step.candidate(case, "layers", {"layers": {"alpha": "per-layer"}})
    assert seen == [(len(list(case.network.parameters())),)]


def test_compiled_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: compiled.append(network) or network)
    rows = step.measure_step(search_config(), 1, compiled=True, memory=False).rows
    assert [row.what for row in rows[-2:]] == ["compiled", "plain_compiled"]
    assert len(compiled) == 2


def test_a_compiler_that_fails_is_one_line(case: step.StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.BackendCompilerFailed(torch.compile, RuntimeError("no C++ compiler\nat all"), None)

    monkeypatch.setattr(torch, "compile", lambda network: broken)
    with pytest.raises(EnvironmentFault, match=r"^--compile: torch cannot compile here \(no C\+\+ compiler\)"):
        step.candidate(case, step.PLAIN_COMPILED).work(0)


def test_peak_memory_sees_what_was_freed() -> None:
    if not memory.RESET.exists():
        pytest.skip("the system does not tell")
    pages = 64 * 2**20
    work = partial(torch.ones, pages, dtype=torch.uint8)
    found = memory.peak_of_process(memory.peak_bytes, work, CPU)
    assert found is not None
    assert 0.9 * pages < found < 3 * pages
    small = memory.peak_bytes(lambda: None, CPU)
    assert small is not None
    assert small < pages / 4, "the mark is set back"


def test_memory_is_measured_in_another_process() -> None:
    config = search_config(image_size=16, batch_size=64)
    plain = memory.peak_of_process(step.step_peak, config, step.PLAIN, step.VARIANTS)
    if not memory.RESET.exists():
        assert plain is None
        return
    assert plain is not None
    # The outputs of the first convolution alone: 16 channels of 16 x 16, float32.
    assert plain > 64 * 16 * 16 * 16 * 4


def test_a_process_that_dies_is_one_line() -> None:
    with pytest.raises(TrainingError, match="measuring memory: its process died"):
        memory.peak_of_process(os._exit, 9)


def test_no_proc_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "RESET", tmp_path / "nowhere" / "clear_refs")
    assert memory.peak_bytes(lambda: None, CPU) is None


def test_unknown_network_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="wrn99_9"):
        step.measure_step(search_config(proxy="wrn99_9"), 1, memory=False)


# Transfer.


def train_config(**changes) -> TrainConfig:
    _, settings = recipes.find("train", "cifar100", "wrn10_1")
    small = {"arch": "wrn10_1", "image_size": 8, "batch_size": 6, "threads": 1, "device": "cpu", "cutout": 4}
    return TrainConfig.from_mapping(settings | small | changes)


def test_transfer_rows() -> None:
    targets = [train_config(), train_config(arch="resnet10t", image_size=32)]
    document = transfer.measure_transfer(search_config(cutout=4), targets, 2).document()
    names = ["plain", "frozen", "uniform", "outside_networks"]
    assert [(row["arch"], row["what"]) for row in document["rows"]] == [
        *(("wrn10_1", name) for name in names),
        *(("resnet10t", name) for name in names),
    ]
    assert {row["against"] for row in document["rows"]} == {"plain"}
    assert document["settings"]["archs"] == ["wrn10_1", "resnet10t"]


def test_the_frozen_row_weighs_with_the_bundles_extractor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each row asks of augmentation and extractor, counted."""
    seen = []
    extract, transform = FrozenExtractor.__call__, Transformation.apply

    def extracting(self, images):
        seen.append("extract")
        return extract(self, images)

    def applying(self, *arguments, **more):
        seen.append("transform")
        return transform(self, *arguments, **more)

    monkeypatch.setattr(FrozenExtractor, "__call__", extracting)
    monkeypatch.setattr(Transformation, "apply", applying)
    transfer.measure_transfer(search_config(cutout=4), [train_config()], 1)
    # Two rounds, one of them the warm-up: frozen transforms and extracts, uniform transforms, the others do neither.
    assert seen == list(itertools.chain(*[["transform", "extract", "transform"]] * 2))


def test_random_bundle_is_one_that_loads() -> None:
    bundle = transfer.random_bundle(search_config(cutout=4), 1, CPU)
    again = type(bundle).from_bytes(bundle.to_bytes())
    assert again.digest == bundle.digest
    assert again.manifest.extractor.arch == "wrn10_1"
    assert again.manifest.input.size == 8
