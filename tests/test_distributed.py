"""One run on several processes: the same result, the same failures, one writer."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mapolicy import PolicyBundle, SearchConfig, TrainConfig, search_policy, train_network
from mapolicy.bilevel.bilevel_step import BilevelStep
from mapolicy.bilevel.inner_rate import InnerRate
from mapolicy.bilevel.microbatch import Batch
from mapolicy.bilevel.options import StepOptions
from mapolicy.data.reading import Cropper
from mapolicy.distributed import ALONE, communicator
from mapolicy.errors import EnvironmentFault, InputError, TrainingError, UsageError
from mapolicy.models.factory import build_network
from mapolicy.policy.network import PolicyNetwork
from mapolicy.policy.pipeline import AugmentedBatch, Pipeline
from mapolicy.runtime.files import CHECKPOINT_FILE, METRICS_FILE, RUN_FILES, STATUS_FILE
from mapolicy.runtime.shard import Shard, whole_batch
from mapolicy.transforms.space import EMBEDDING_WIDTH
from tests.helpers.ranks import Ranks, on_ranks

CPU = torch.device("cpu")
WITHOUT_STATISTICS = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}  # layer norm


def test_a_process_alone_is_all_there_is() -> None:
    rows = torch.arange(6.0, requires_grad=True)
    assert communicator() is ALONE
    assert ALONE.shard(6) == whole_batch(6) == Shard(0, 6, 6)
    assert ALONE.gather(rows) is rows
    assert ALONE.sum([rows])[0] is rows
    assert (ALONE.largest(3, 0), ALONE.broadcast(b"x"), ALONE.sent) == ([3, 0], b"x", 0)


def test_what_processes_tell_each_other(tmp_path: Path) -> None:
    def told() -> dict[str, Any]:
        group = communicator()
        own = torch.arange(2.0) + 10 * group.rank
        rows = own.clone().requires_grad_()
        gathered = group.gather(rows)
        (gathered * torch.arange(float(len(gathered)))).sum().backward()
        tensors = [torch.full((2, 3), 1.0 + group.rank), torch.tensor(group.rank), torch.ones(2, 2).t()]
        mean = torch.tensor([float(group.rank)])
        group.average([mean])
        return {
            "part": group.shard(6),
            "gathered": gathered.detach(),
            "gradient": rows.grad,
            "sums": group.sum(tensors),
            "mean": mean,
            "largest": group.largest(group.rank, -group.rank),
            "bytes": group.broadcast(b"from %d" % group.rank),
        }

    size = 3
    for rank, got in enumerate(on_ranks(size, told, tmp_path)):
        assert got["part"] == Shard(2 * rank, 2, 6)
        assert got["gathered"].tolist() == [0, 1, 10, 11, 20, 21]
        assert got["gradient"].tolist() == [2 * rank, 2 * rank + 1]
        assert [total.tolist() for total in got["sums"]] == [[[6] * 3] * 2, 3, [[3, 3], [3, 3]]]
        assert got["mean"].tolist() == [1]
        assert (got["largest"], got["bytes"]) == ([2, 0], b"from 0")


def test_processes_that_were_given_different_things_are_told(tmp_path: Path) -> None:
    def differing() -> str:
        group = communicator()
        try:
            group.check_equal("its data set", f"images {group.rank}")
        except InputError as problem:
            return str(problem)
        return ""

    assert on_ranks(2, differing, tmp_path) == [
        "",
        "rank 1: its data set is not that of rank 0; give all processes the same",
    ]


class Steps:
    """A small network that is searched on for some iterations, each on a batch of its own."""

    def __init__(self, dtype: torch.dtype, arch: str, arguments: dict[str, Any], **options: Any) -> None:
        self.dtype = dtype
        self.network = build_network(arch, arguments, 4, 1, 0, CPU).to(dtype)
        torch.manual_seed(1)
        self.policy = PolicyNetwork(self.network.head_hidden_size).to(dtype)
        torch.nn.init.normal_(self.policy.output.weight, std=0.3)
        self.rate = InnerRate(0.05).to(dtype)
        self.step = BilevelStep(
            self.network,
            self.policy,
            self.rate,
            torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
            torch.optim.AdamW([*self.policy.parameters(), *self.rate.parameters()], lr=0.01),
            StepOptions(**options),
            communicator=communicator(),
        )

    def iterate(self, count: int, batch: int = 12, held_out: int = 8) -> dict[str, Tensor]:
        """The state after some iterations; each process computes its part of the batch."""
        group, record = self.step.communicator, None
        for number in range(count):
            draws = torch.Generator().manual_seed(number)

            def own(*shape: int, draws: torch.Generator = draws) -> Tensor:
                drawn = torch.randn(*shape, generator=draws, dtype=torch.float64).to(self.dtype)
                return group.shard(len(drawn)).of(drawn)

            def classes(count: int, draws: torch.Generator = draws) -> Tensor:
                return group.shard(count).of(torch.randint(4, (count,), generator=draws))

            validation = own(held_out, 1, 8, 8), classes(held_out)
            images, labels, embedding = own(batch, 1, 8, 8), classes(batch), own(batch, EMBEDDING_WIDTH)
            record = self.step(images, labels, embedding, validation if number % 3 < 2 else None, noise_seed=number)
        assert record is not None
        modules = {"network": self.network, "policy": self.policy, "rate": self.rate}
        state = {f"{kind}.{name}": t for kind, module in modules.items() for name, t in module.state_dict().items()}
        assert record.raw is not None  # the last iteration learned
        return state | {"weights": record.weights, "raw": record.raw, "loss": record.loss}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert set(one) == set(other)
    assert len(one) > 10
    return max(float((one[name] - other[name]).abs().max()) for name in one)


VIT = ("vit_tiny_patch16_224", WITHOUT_STATISTICS)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 0.5},
        {"low_memory": True, "reject_below_mean": True},
        {"simultaneous": True},
        {"equal_weights": True, "clip_norm": 0.5},
    ],
    ids=["paper", "low-memory", "simultaneous", "equal"],
)
def test_two_processes_and_one_are_the_same_run(options: dict[str, Any], tmp_path: Path) -> None:
    def run() -> dict[str, Tensor]:
        return Steps(torch.float64, *VIT, **options).iterate(25)

    alone = run()
    start = Steps(torch.float64, *VIT, **options).iterate(1)
    assert distance(alone, start) > 1e-2, "nothing has moved"
    first, second = on_ranks(2, run, tmp_path)
    assert distance(first, second) == 0
    assert distance(first, alone) <= 1e-12
    again, _ = on_ranks(2, run, tmp_path)
    assert distance(first, again) == 0


@pytest.mark.parametrize(("iterations", "bound"), [(1, 1e-6), (5, 1e-5)])
def test_in_single_precision_they_differ_by_rounding(iterations: int, bound: float, tmp_path: Path) -> None:
    def run() -> dict[str, Tensor]:
        return Steps(torch.float32, *VIT).iterate(iterations)

    first, second = on_ranks(2, run, tmp_path)
    assert distance(first, second) == 0
    assert distance(first, run()) <= bound


VIT_RUN: dict[str, Any] = {
    "model_args": WITHOUT_STATISTICS,
    "epochs": 1,
    "validation_batch_size": 32,
    "learning_rate": 0.02,
    "policy_learning_rate": 1e-3,
}


ALIGNMENT = {"sampler": "alignment", "weighting": "equal", "verify": False}


def nearly_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal but for single precision's rounding, in searches of `VIT_RUN`.

    AdamW makes a whole step of a gradient that is nearly nothing, in the direction that rounding gives it, so that on
    some CPUs a weight in a hundred is off by a part of the learning rate.
    """
    few = all(((one[name] - other[name]).abs() > 1e-5).double().mean() <= 0.01 for name in one)
    return few and distance(one, other) <= VIT_RUN["policy_learning_rate"]


@pytest.fixture
def searched(make_search_config: Callable[..., SearchConfig]) -> Callable[..., dict[str, Tensor]]:
    """Searches on digits, five iterations long unless told otherwise; returns the bundle's tensors."""

    def search(run_dir: Path | None = None, resume: bool = False, **changes: Any) -> dict[str, Tensor]:
        large = {"train_per_class": 128, "batch_size": 256}  # rounding of a small batch passes the bounds
        config = make_search_config(**{"proxy": VIT[0]} | VIT_RUN | large | changes)
        return dict(search_policy(config, run_dir=run_dir, resume=resume).tensors)

    return search


@pytest.mark.parametrize(
    "changes", [{}, ALIGNMENT, ALIGNMENT | {"sampler_input": "class"}], ids=["mean-weight", "alignment", "class"]
)
def test_a_search_on_two_processes_finds_the_same_bundle(
    changes: dict[str, Any], searched: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    store, runs = tmp_path / "store", tmp_path / "runs"
    store.mkdir()
    bundles = on_ranks(2, partial(searched, runs, **changes), store)
    assert distance(*bundles) == 0
    assert nearly_equal(bundles[0], searched(**changes))
    assert {path.name for path in runs.iterdir()} <= {*RUN_FILES}
    lines = [json.loads(line) for line in (runs / METRICS_FILE).read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 5], "rank 0 alone writes"
    assert json.loads((runs / STATUS_FILE).read_text())["state"] == "done"


def test_draws_that_see_features_are_the_same_on_two_processes(
    searched: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    """Directions of nearly equal variance may turn into each other by rounding, so their effects are not compared."""
    store = tmp_path / "store"
    store.mkdir()
    changes = ALIGNMENT | {"sampler_input": "features"}
    bundles = on_ranks(2, partial(searched, tmp_path / "runs", **changes), store)
    assert distance(*bundles) == 0
    alone = searched(**changes)
    for name in ("sampler.feature_center", "sampler.log_levels"):
        torch.testing.assert_close(bundles[0][name], alone[name], rtol=0, atol=1e-4)


def test_a_search_on_two_processes_repeats_itself(
    make_search_config: Callable[..., SearchConfig], tmp_path: Path
) -> None:
    """With batch statistics of each process's part, and a clipped gradient: the whole file, bit for bit."""
    config = make_search_config(epochs=1, validation_batch_size=128)

    def digest() -> str:
        bundle = search_policy(config)
        assert bundle.manifest.search.settings["processes"] == 2
        return bundle.digest

    first, second = on_ranks(2, digest, tmp_path)
    assert first == second == on_ranks(2, digest, tmp_path)[0]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_on_another_number_of_processes(
    before: int, after: int, searched: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    store, runs = tmp_path / "store", tmp_path / "runs"
    store.mkdir()

    def on(size: int, function: Callable[[], Any]) -> list[Any]:
        return on_ranks(size, function, store) if size > 1 else [function()]

    def interrupted() -> int:
        """A signal reaches the last process alone, in the third iteration."""
        with iterations(lambda step: step == 2 and communicator().rank == before - 1, partial(send, signal.SIGTERM)):
            try:
                searched(runs)
            except SystemExit as stop:
                return int(stop.code or 0)
        return 0

    assert on(before, interrupted) == [143] * before
    assert json.loads((runs / STATUS_FILE).read_text()) == {
        "state": "interrupted",
        "exit_code": 143,
        "reason": "SIGTERM",
        "step": 3,
    }
    bundle = on(after, partial(searched, runs, True))[0]
    assert nearly_equal(bundle, searched())


@contextmanager
def iterations(when: Callable[[int], bool], what: Callable[[], None]) -> Iterator[None]:
    """Within it something happens in the iterations for which `when(step)`."""
    original = Pipeline.augment

    def augment(self: Pipeline, images: Tensor, labels: Tensor, of: Any, step: int, *arguments: Any) -> AugmentedBatch:
        if when(step):
            what()
        return original(self, images, labels, of, step, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "augment", augment)
        yield


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_process_ends_the_others_and_the_checkpoint_stands(
    fault: int, searched: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    store, runs = tmp_path / "store", tmp_path / "runs"
    store.mkdir()

    def losing() -> None:
        with iterations(lambda step: step == 3 and communicator().rank == 1, partial(send, fault)):
            searched(runs, checkpoint_minutes=0.0)

    started = time.monotonic()
    group = Ranks(2, losing, store, patience=2.0)
    problem = group.result(0)
    assert time.monotonic() - started < 15
    os.kill(group.processes[1].pid, signal.SIGKILL)
    assert isinstance(problem, EnvironmentFault)
    assert str(problem).startswith("rank 0: another process of this run has ended, or did not answer")
    assert len(str(problem)) <= 240
    status = json.loads((runs / STATUS_FILE).read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 5, 3)
    assert nearly_equal(searched(runs, resume=True), searched())


def test_a_loss_that_is_not_finite_stops_all_before_the_update(tmp_path: Path) -> None:
    def poisoned() -> tuple[str, float]:
        steps = Steps(torch.float32, *VIT)
        steps.iterate(2)
        modules = (steps.network, steps.policy)
        before = [copy.deepcopy(tensor) for module in modules for tensor in module.state_dict().values()]
        original = steps.step.losses.forward

        def forward(batch: Batch, records: bool = False) -> Any:
            found = original(batch, records)
            return replace(found, losses=found.losses * torch.nan) if communicator().rank == 1 else found

        steps.step.losses.forward = forward  # type: ignore[method-assign]
        loss = steps.iterate(1)["loss"]
        after = [tensor for module in modules for tensor in module.state_dict().values()]
        moved = max(float((old - new).abs().max()) for old, new in zip(before, after, strict=True))
        return str(float(loss)), moved

    assert on_ranks(2, poisoned, tmp_path) == [("nan", 0.0)] * 2


def message(error: type[Exception], function: Callable[..., Any], **arguments: Any) -> str:
    try:
        function(**arguments)
    except error as problem:
        return str(problem)
    return ""


def test_a_run_that_diverges_ends_alike_everywhere(searched: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    diverging = partial(message, TrainingError, searched, learning_rate=1e30)
    first, second = on_ranks(2, diverging, tmp_path)
    assert first.partition(";")[0] == second.partition(";")[0], "rank 0 alone knows of checkpoints"
    assert "not finite" in first or "the loss is" in first
    assert "checkpoint" in first
    assert "checkpoint" not in second


def test_a_process_decodes_its_own_images_alone(
    make_train_config: Callable[..., TrainConfig], tiny: Path, tmp_path: Path
) -> None:
    config = make_train_config(
        dataset="folder:tiny",
        data_dir=str(tiny),
        image_size=16,
        policy="uniform",
        base_augmentation="random_resized_crop",
        keep_images="off",
        train_per_class=4,
        validation_per_class=1,
        test_per_class=1,
        epochs=1,
        batch_size=8,
        validation_batch_size=2,
        workers=0,
        learning_rate=0.0,
    )

    def trained() -> tuple[list[int], Tensor]:
        decoded, images = [], []
        original, augment = Cropper.random, Pipeline.augment

        def random(self: Cropper, image: Any, index: int, step: int, name: str) -> Any:
            decoded.append(index)
            return original(self, image, index, step, name)

        def seen(self: Pipeline, *arguments: Any) -> AugmentedBatch:
            batch = augment(self, *arguments)
            images.append(batch.images)
            return batch

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Cropper, "random", random)
            patch.setattr(Pipeline, "augment", seen)
            train_network(config)
        return decoded, torch.cat(images)

    decoded, images = trained()
    (first, first_images), (second, second_images) = on_ranks(2, trained, tmp_path)
    assert sorted(first + second) == sorted(decoded)
    assert len(first) == len(second) == 4
    assert torch.equal(torch.cat([first_images, second_images]), images)


@pytest.mark.parametrize("limit", [0.0, 1.0], ids=["file", "memory"])
def test_ranks_with_kept_images_see_the_batches_of_one(
    make_train_config: Callable[..., TrainConfig], tiny: Path, tmp_path: Path, limit: float
) -> None:
    """Each crops its own images; a file is filled by both at once, and has an image after one of them has kept it."""
    config = make_train_config(
        dataset="folder:tiny",
        data_dir=str(tiny),
        image_size=16,
        policy="uniform",
        base_augmentation="random_resized_crop",
        keep_images="whole",
        cache_dir=str(tmp_path / "cache"),
        memory_limit_gib=limit,
        train_per_class=4,
        validation_per_class=1,
        test_per_class=1,
        epochs=2,
        batch_size=8,
        validation_batch_size=2,
        workers=0,
        learning_rate=0.0,
    )

    def trained() -> Tensor:
        images, augment = [], Pipeline.augment

        def seen(self: Pipeline, *arguments: Any) -> AugmentedBatch:
            images.append(augment(self, *arguments))
            return images[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pipeline, "augment", seen)
            train_network(config)
        return torch.stack([batch.images for batch in images])

    first, second = on_ranks(2, trained, tmp_path)
    assert len(list((tmp_path / "cache").rglob("*.images"))) == (2 if limit == 0 else 0)
    assert torch.equal(torch.cat([first, second], 1), trained())


def test_a_batch_that_cannot_be_divided_is_refused(searched: Callable[..., dict[str, Tensor]], tmp_path: Path) -> None:
    expected = "batch_size: 255 images are not divided by 2 processes x accumulate 1; set it to a multiple of 2"
    assert on_ranks(2, partial(message, UsageError, searched, batch_size=255), tmp_path) == [expected] * 2


def torchrun(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, "-m", "mapolicy", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SEARCH = (
    "search",
    "digits",
    "--device",
    "cpu",
    "--set",
    "train_per_class=32",
    "--set",
    "batch_size=128",
    "--run-dir",
    "run",
    "--out",
    "found.safetensors",
)


def test_torchrun_searches_as_typed(tmp_path: Path) -> None:
    """The only test that starts processes as users do: their imports cost ten seconds."""
    process = torchrun(*SEARCH, "--epochs", "1", "--json", folder=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    document = json.loads(out)
    bundle = PolicyBundle.load(tmp_path / "found.safetensors")
    assert document["digest"] == bundle.digest
    assert bundle.manifest.search.settings["processes"] == 2
    assert err.count("mapolicy: epoch 1") == 1
    assert "processes: 2, batch normalisation local" in err
    assert {path.name for path in tmp_path.iterdir()} == {"found.safetensors", "run"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked to stop"])
def test_when_the_launcher_goes_so_do_its_processes(number: int, tmp_path: Path) -> None:
    process = torchrun(*SEARCH, "--epochs", "1000", "--quiet", folder=tmp_path)
    log = tmp_path / "run" / METRICS_FILE
    assert until(lambda: log.exists() and log.stat().st_size > 0, 90)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.send_signal(number)
    assert until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 15)
    process.communicate(timeout=30)
    status = json.loads((tmp_path / "run" / STATUS_FILE).read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 143)
    assert (tmp_path / "run" / CHECKPOINT_FILE).exists()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


WRN = ("wrn10_1", {})


def test_with_synchronised_statistics_two_processes_and_one_are_the_same_run(tmp_path: Path) -> None:
    def run(batch_norm: bool) -> dict[str, Tensor]:
        return Steps(torch.float64, *WRN, synchronised=batch_norm).iterate(24)

    alone = run(True)
    first, second = on_ranks(2, partial(run, True), tmp_path)
    assert distance(first, second) == 0
    assert distance(first, alone) <= 1e-12
    local, other = on_ranks(2, partial(run, False), tmp_path)
    assert distance(local, other) == 0, "running statistics are averaged"
    assert distance(local, alone) > 1e-3, "statistics of a half are others"


@pytest.mark.parametrize(
    "options",
    [{"clip_norm": 0.5}, {"reject_below_mean": True}, {"simultaneous": True}],
    ids=["paper", "rejecting", "simultaneous"],
)
def test_a_batch_in_parts_is_the_whole_batch(options: dict[str, Any]) -> None:
    whole = Steps(torch.float64, *VIT, **options).iterate(12)
    parts = Steps(torch.float64, *VIT, **options, accumulate=4).iterate(12)
    assert distance(whole, parts) <= 1e-12


def test_a_part_of_a_process_and_a_process_are_the_same_thing(tmp_path: Path) -> None:
    """With batch statistics and noise of each part: two processes of two parts are one of four."""
    noisy = ("wrn10_1", {"drop_rate": 0.3})

    def run(accumulate: int) -> dict[str, Tensor]:
        return Steps(torch.float64, *noisy, accumulate=accumulate).iterate(1)

    # Statistics move in one part after the other, and are averaged over processes.
    alone = {name: tensor for name, tensor in run(4).items() if "running" not in name and "batches" not in name}
    for state in on_ranks(2, partial(run, 2), tmp_path):
        assert distance({name: state[name] for name in alone}, alone) <= 1e-12
    two = run(2)
    assert distance({name: two[name] for name in alone}, alone) > 1e-3, "parts matter"


def test_every_part_draws_noise_of_its_own() -> None:
    rows = torch.zeros(4, 1)
    batch = Batch(rows, rows, rows, None, noise_seed=7)
    seeds = [part.noise_seed for rank in (0, 1, 2) for part in batch.divided(2, rank)]
    assert seeds[0] == 7, "a process alone draws what it always did"
    assert len({*seeds, *(seed + 1 for seed in seeds)}) == 12, "the meta-validation batch draws the next one"


def test_running_statistics_move_once_for_each_part() -> None:
    one, four = (Steps(torch.float64, *WRN, accumulate=count) for count in (1, 4))
    for steps, moves in ((one, 1), (four, 4)):
        steps.iterate(1)
        counts = [buffer for name, buffer in steps.network.named_buffers() if name.endswith("num_batches_tracked")]
        assert {int(count) for count in counts} == {moves}


def test_an_extractor_of_its_own_does_not_come_in_parts(searched: Callable[..., dict[str, Tensor]]) -> None:
    with pytest.raises(UsageError, match="would keep the graphs of all micro-batches"):
        searched(extractor="own", accumulate=2)
    with pytest.raises(InputError, match="statistics of the whole batch are not known"):
        searched(batch_norm="synchronised", accumulate=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "none"},
        {},
        {"mode": "finetune"},
        {"label_smoothing": 0.1, "balance": "loss", "ema_decay": 0.9, "keep_best": True},
    ],
    ids=["baseline", "frozen", "finetuned", "everything"],
)
def test_training_in_parts_and_on_processes_is_training(
    changes: dict[str, Any],
    make_train_config: Callable[..., TrainConfig],
    bundle: PolicyBundle,
    tmp_path: Path,
) -> None:
    def trained(**more: Any) -> dict[str, Tensor]:
        config = make_train_config(**{"arch": VIT[0]} | VIT_RUN | {"learning_rate": 0.02} | changes | more)
        result = train_network(config, bundle)
        figures = torch.tensor([result.test_top1, result.weight_spread])
        return result.network.state_dict() | {"figures": figures}

    alone = trained()
    assert distance(trained(accumulate=2), alone) <= 1e-5
    first, second = on_ranks(2, trained, tmp_path)
    assert distance(first, second) == 0
    assert distance(first, alone) <= 1e-5


@pytest.mark.parametrize("options", [{}, {"simultaneous": True}], ids=["paper", "simultaneous"])
def test_an_iteration_sends_what_the_documentation_says(options: dict[str, Any], tmp_path: Path) -> None:
    """docs/scaling.md: of w three sums (two where w and theta move at once), of theta one, two numbers a sample."""
    batch = 12

    def sent() -> tuple[int, int, int, int]:
        steps = Steps(torch.float32, *WRN, **options)
        steps.iterate(1)  # the first one also looks for its rules
        before = steps.step.communicator.sent
        steps.iterate(1)
        w, theta = (sum(p.numel() for p in module.parameters()) for module in (steps.network, steps.policy))
        statistics = sum(b.numel() for name, b in steps.network.named_buffers() if "running" in name)
        return steps.step.communicator.sent - before, w, theta, statistics

    for total, w, theta, statistics in on_ranks(2, sent, tmp_path):
        sums = 2 if "simultaneous" in options else 3
        gathered = 2 if "simultaneous" in options else 3  # raw outputs of the old and the new theta, s_i
        assert total == 4 * (sums * w + theta + statistics + gathered * batch // 2 + 2)
