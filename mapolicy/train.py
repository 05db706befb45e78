"""Stage two: train any network on the bundle's data set with the bundle's policy, or with a baseline to compare it to.

`search.py` is its twin: the same pieces in the same order, but the policy comes from a bundle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from torch.optim import Optimizer

from .bilevel import InnerRate, StepOptions
from .bundle import PolicyBundle
from .bundle_format import EXTRACTOR_PREFIX
from .checkpoint import RunState
from .compiled import choose, make_step
from .config import TrainConfig
from .data import DataSplits
from .errors import InputError, UsageError
from .evaluate import evaluate
from .files import NETWORK_FILE, write_atomically
from .iteration import BilevelIteration, Iteration, WeightedIteration
from .optimisation import make_policy_optimizer
from .policies import Augmentation, AutoAugment, NoAugmentation, PublishedPolicy, SampledTransformations
from .reporting import Reporter
from .reuse import FrozenExtractor, FrozenWeights
from .run import Run
from .runtime import reproducible, resolve_device
from .sampler import TransformationSampler
from .task import Task

# A target may see the data at another size and under another base augmentation than the proxy did.
FREE_DATA_SETTINGS = frozenset({"dataset", "image_size", "base_augmentation", "cutout"})


@dataclass(frozen=True)
class TrainResult:
    """A trained network and how good it is.

    Attributes:
        network: the network, on the run's device.
        test_top1, test_top5: per cent of the test split, measured once, after the last iteration.
        validation_top1: per cent of the meta-validation split; None where it was trained on.
        weight_spread: standard deviation over mean of the last batch's weights.
        cost_ratio: time of an iteration over that of a plain step; None if the run was too short to tell.
        digest: of the bundle that was used; None for a baseline without one.
        refined: the bundle with theta, alpha and p_jk as fine-tuned; None if they were not.
    """

    network: nn.Module
    test_top1: float
    test_top5: float
    validation_top1: float | None
    weight_spread: float
    cost_ratio: float | None
    digest: str | None
    refined: PolicyBundle | None

    def figures(self) -> dict[str, float | str | None]:
        """The result without the network and the bundle."""
        return {key: value for key, value in vars(self).items() if key not in ("network", "refined")}


def train_network(
    config: TrainConfig,
    bundle: PolicyBundle | None = None,
    reporter: Reporter | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainResult:
    """Train a network; the test split is opened once, at the end.

    Args:
        config: the training, complete.
        bundle: the policy; for a baseline it is optional and gives the data split alone.
        reporter: hears of the progress; None for silence.
        run_dir: folder for configuration, log, checkpoints, result and weights; None writes nothing.
        resume: go on from the checkpoint in `run_dir`.
        overwrite: remove the files of an earlier run from `run_dir`, once everything else is in order.

    Raises:
        UsageError, InputError: the configuration, the bundle, the network or the data cannot be used, or do not fit.
        TrainingError: a loss is not finite, or memory has run out.
        EnvironmentFault: the run folder cannot be written.
    """
    reporter = reporter or Reporter()
    device = resolve_device(config.device)
    if config.policy == "learned" and bundle is None:
        raise UsageError("policy learned", "there is no bundle", "give --bundle FILE, or --policy for a baseline")
    if bundle is not None:
        _check_settings(config, bundle)
    with reproducible(config.threads, device):
        held_out = None if bundle is None else bundle.meta_validation
        check = None if bundle is None else partial(_check_data, bundle)
        task = Task.build(config, device, held_out, check)
        iteration, state = plan(config, bundle, task, device, reporter.noted)
        digest = None if bundle is None else bundle.digest
        with Run(config, state, task, reporter, run_dir, resume, overwrite, digest, _facts(iteration)) as run:
            cost_ratio = run.loop(iteration)
            if run_dir is not None:
                weights = {name: tensor.cpu().contiguous() for name, tensor in task.network.state_dict().items()}
                write_atomically(run_dir / NETWORK_FILE, save(weights))
            validation = None if config.include_validation else task.validation_accuracy().top1
            left_out = len(task.splits.corrupt)
            test = task.splits.test()
            if len(task.splits.corrupt) > left_out:
                run.note_corrupt(task.splits.corrupt[left_out:])
            accuracy = evaluate(task.network, test, task.pipeline, config.batch_size)
            result = TrainResult(
                network=task.network,
                test_top1=accuracy.top1,
                test_top5=accuracy.top5,
                validation_top1=validation,
                weight_spread=run.last_record["weight_spread"],
                cost_ratio=cost_ratio,
                digest=digest,
                refined=_refined(config, bundle, state) if config.mode == "finetune" else None,
            )
            names = {"arch": config.arch, "policy": config.policy, "mode": config.mode}
            run.finish({**names, **result.figures(), **_facts(iteration)})
    return result


def plan(
    config: TrainConfig,
    bundle: PolicyBundle | None,
    task: Task,
    device: torch.device,
    noted: Callable[[str], None] = lambda text: None,
) -> tuple[Iteration, RunState]:
    """What an iteration does under this policy, and what of it moves."""
    modules: dict[str, nn.Module] = {"network": task.network}
    optimizers: dict[str, Optimizer] = {"network": task.optimizer}
    if config.policy != "learned":
        return WeightedIteration(task, _baseline(config, task)), RunState(modules, optimizers)
    assert bundle is not None
    extractor, policy = FrozenExtractor(bundle, device), bundle.build_policy().to(device)
    if config.mode == "frozen":
        sampler = TransformationSampler(probabilities=bundle.probabilities)
        augmentation = SampledTransformations(sampler, config.operation_space)
        weights = FrozenWeights(extractor, policy)
        return WeightedIteration(task, augmentation, weights), RunState(modules, optimizers)

    sampler = TransformationSampler.from_config(config, task.iterations_per_epoch, bundle.probabilities, bundle.means)
    # An alpha for each of the proxy's tensors means nothing to another network: it starts from their mean.
    rate = InnerRate(float(bundle.alpha.log().mean().exp())).to(device)
    policy_optimizer = make_policy_optimizer(config, policy.parameters(), rate, task.iterations)
    bilevel = make_step(
        choose(config, task.network, task.splits.channels, task.iterations, device),
        noted,
        strict=config.compile == "always",
        network=task.network,
        policy=policy,
        rate=rate,
        optimizer=task.optimizer,
        policy_optimizer=policy_optimizer,
        options=StepOptions.of(config),
    )
    augmentation = SampledTransformations(sampler, config.operation_space)
    state = RunState(
        modules | {"policy": policy, "rate": rate}, optimizers | {"policy": policy_optimizer}, sampler=sampler
    )
    return BilevelIteration(task, augmentation, bilevel, lambda batch: extractor(batch.images)), state


def _facts(iteration: Iteration) -> dict[str, str]:
    return {"step": iteration.bilevel.how} if isinstance(iteration, BilevelIteration) else {}


def _baseline(config: TrainConfig, task: Task) -> Augmentation:
    if config.policy == "none":
        return NoAugmentation()
    if config.policy == "uniform":
        return SampledTransformations(TransformationSampler(), config.operation_space)
    if config.policy == "autoaugment":
        return AutoAugment(task.splits.name)
    return PublishedPolicy(config.policy)


def _check_settings(config: TrainConfig, bundle: PolicyBundle) -> None:
    """The run splits and augments the data as the search did.

    Raises:
        InputError: the setting that differs.
    """
    for name, value in bundle.data_settings().items():
        if name not in FREE_DATA_SETTINGS and getattr(config, name) != value:
            why = f"is {getattr(config, name)!r}, the bundle was searched with {value!r}"
            raise InputError(f"setting {name}", why, "leave it out: it comes from the bundle")


def _check_data(bundle: PolicyBundle, splits: DataSplits) -> None:
    """The data set is the one that the bundle was searched on.

    Raises:
        InputError: the difference, named.
    """
    searched = bundle.manifest.dataset
    remedy = "name the data set that the policy was searched on"
    if len(splits.classes) != len(searched.classes):
        why = f"has {len(splits.classes)} classes, the bundle's data set {len(searched.classes)}"
        raise InputError(splits.name, why, remedy)
    for position, (here, there) in enumerate(zip(splits.classes, searched.classes, strict=True)):
        if here != there:
            raise InputError(splits.name, f"its class {position} is {here!r}, the bundle's is {there!r}", remedy)
    if splits.fingerprint != searched.fingerprint:
        why = f"its images are not those of the bundle's {searched.name} (fingerprint {searched.fingerprint[:12]})"
        raise InputError(splits.name, why, remedy)


def _refined(config: TrainConfig, bundle: PolicyBundle | None, state: RunState) -> PolicyBundle:
    """The bundle with what fine-tuning has made of theta, alpha and p_jk."""
    assert bundle is not None
    assert state.sampler is not None
    rate = state.modules["rate"]
    assert isinstance(rate, InnerRate)
    extractor = {
        name.removeprefix(EXTRACTOR_PREFIX): tensor
        for name, tensor in bundle.tensors.items()
        if name.startswith(EXTRACTOR_PREFIX)
    }
    return PolicyBundle.assemble(
        bundle.manifest.draft(
            note=f"Policy {bundle.digest[:12]}, fine-tuned while training {config.arch} for {config.epochs} epochs."
        ),
        policy=state.modules["policy"].state_dict(),
        alpha=torch.full_like(bundle.alpha, float(rate().detach())),
        probabilities=state.sampler.probabilities,
        means=state.sampler.means,
        extractor=extractor,
        meta_validation=bundle.meta_validation,
    )
