"""Stage two: train any network on the bundle's data set with the bundle's policy, or with a baseline to compare it to.

`search.py` is its twin: the same pieces in the same order, but the policy comes from a bundle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .bilevel.inner_rate import InnerRate
from .bundle.format import EXTRACTOR_PREFIX
from .bundle.manifest_base import PolicyFile
from .config import TrainConfig
from .config.choices import AS_SEARCHED, LATER
from .distributed import communicator
from .errors import InputError
from .inference.measures import Evaluation
from .inference.save import check_savable, describe_network, save_network
from .models.noise import has_unequal_noise
from .policy.augmentations import build_augmentation
from .policy.compatibility import (
    FREE_DATA_SETTINGS,
    SPLIT_SETTINGS,
    DatasetComparison,
    check_before_download,
    check_settings,
)
from .policy.frozen import FrozenExtractor
from .policy.policy_bundle import PolicyBundle
from .policy.protocol import policy_of, searched_bundle
from .policy.samplers import SamplerPlan, SamplerStart, build_sampler, learned_draws
from .registries import SAMPLERS, SEARCHED_POLICIES
from .runtime.device import reproducible, resolve_device
from .runtime.files import NETWORK_FILE
from .runtime.plugins import HOW_TO_REGISTER
from .runtime.sanitize import escaped, quoted
from .training.build_iteration import build_bilevel_run
from .training.callbacks import Reporter
from .training.checkpoint import RunState
from .training.dry_run import Forecast, forecast, forecast_before, leaving_nothing
from .training.iteration import BilevelIteration, Iteration, WeightedIteration
from .training.sample_context import SampleContext
from .training.setup import TrainingSetup
from .training.trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """A trained network and how good it is.

    Attributes:
        network: the network, on the run's device, in evaluation mode.
        test_top1, test_top5: per cent of the test split, measured once, after the last iteration.
        test: the same with figures for each class and the calibration.
        validation_top1: per cent of the meta-validation split; None where it was trained on.
        weight_spread: standard deviation over mean of the last batch's weights.
        cost_ratio: time of an iteration over that of a plain step; None if the run was too short to tell.
        digest: of the bundle that was used; None for a baseline without one.
        dataset_mismatch: what tells the data set from the bundle's, where that was allowed; empty where nothing does.
        refined: the bundle with theta, alpha and p_jk as fine-tuned; None if they were not.
        epochs: that it was trained for; fewer than asked for after early stopping.
        best_epoch: whose weights the network has, where `keep_best` or `early_stopping` chose it; else None.
    """

    network: nn.Module
    test_top1: float
    test_top5: float
    test: Evaluation
    validation_top1: float | None
    weight_spread: float
    cost_ratio: float | None
    digest: str | None
    dataset_mismatch: tuple[str, ...]
    refined: PolicyBundle | None
    epochs: int
    best_epoch: int | None

    def figures(self) -> dict[str, Any]:
        """The result as plain values, without the network and the bundle; percentages of the test split."""
        left = {key: value for key, value in vars(self).items() if key not in ("network", "refined", "test")}
        figures = {f"test_{name}": value for name, value in self.test.figures().items()}
        return {**left, **figures, "test_classes": self.test.class_table()}


def train_network(
    config: TrainConfig,
    bundle: PolicyFile | None = None,
    reporter: Reporter | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_dataset_mismatch: bool = False,
    split_of: PolicyBundle | None = None,
    out: Path | None = None,
) -> TrainResult:
    """Train a network; the test split is used once, at the end. That its files can be read is found out before.

    In a process group of torch every process calls it alike and returns the same network.

    Args:
        config: the training, complete.
        bundle: the policy; for a baseline it is optional and gives the data split alone. A dataset-level policy has
            no split, fits every data set and cannot be learned further.
        reporter: hears of the progress; None for silence.
        run_dir: folder for configuration, log, checkpoints, result and weights; None writes nothing.
        resume: go on from the checkpoint in `run_dir`.
        overwrite: remove the files of an earlier run from `run_dir`, once everything else is in order.
        allow_dataset_mismatch: take a bundle that was searched on another data set: its split is not used, images that
            the policy learned from may be test images here. What differs is told and recorded.
        split_of: the searched bundle whose data set and split a dataset-level policy is trained on; None takes the
            settings'. A searched bundle has its own.
        out: file that a fine-tuned bundle is written to before the run counts as done; None leaves it to the caller.

    Raises:
        UsageError, InputError: the configuration, the bundle, the network or the data cannot be used, or do not fit.
        TrainingError: a loss is not finite, or memory has run out.
        EnvironmentFault: the run folder or the bundle cannot be written.
    """
    if communicator().rank:
        reporter, run_dir, out = None, None, None  # rank 0 tells and writes
    reporter = reporter or Reporter()
    device = resolve_device(config.device)
    with reproducible(config.threads, device):
        setup, iteration, state, differences = _prepared(
            config, bundle, reporter, device, allow_dataset_mismatch, split_of
        )
        if run_dir is not None:
            check_savable(config, setup.splits, setup.network)
        expected = forecast_before(iteration, state, resume, reporter.on_note)
        digest = None if bundle is None else bundle.digest
        learned = searched_bundle(bundle) if config.mode == "finetune" else None
        facts = _facts(iteration)
        with Trainer(config, state, setup, reporter, run_dir, resume, overwrite, digest, facts, expected) as run:
            cost_ratio = run.loop(iteration)
            for warning in _warnings(iteration):
                reporter.on_note(warning)
            if run_dir is not None:
                description = describe_network(config, setup.splits, setup.network, digest)
                save_network(run_dir / NETWORK_FILE, setup.network, description)
            validation = None if config.include_validation else setup.validation_accuracy().top1
            test = run.open_test_split()
            accuracy = setup.evaluation(test)
            result = TrainResult(
                network=setup.network.eval(),
                test_top1=accuracy.top1,
                test_top5=accuracy.top5,
                test=accuracy,
                validation_top1=validation,
                weight_spread=run.last_record["weight_spread"],
                cost_ratio=cost_ratio,
                digest=digest,
                dataset_mismatch=differences,
                refined=_refined(config, learned, state, iteration) if learned is not None else None,
                epochs=run.epochs,
                best_epoch=setup.selection.best_epoch or None,
            )
            if out is not None and result.refined is not None:
                result.refined.save(out)
            run.finish(
                {
                    "arch": config.arch,
                    "policy": config.policy,
                    "mode": config.mode,
                    "bundle": None if bundle is None else bundle.origin,
                    "test_images": len(test),
                    **result.figures(),
                    **facts,
                }
            )
    return result


def forecast_training(
    config: TrainConfig,
    bundle: PolicyFile | None = None,
    reporter: Reporter | None = None,
    allow_dataset_mismatch: bool = False,
) -> Forecast:
    """What `train_network` would take: it does a few iterations and writes nothing.

    Raises:
        UsageError, InputError, TrainingError: as `train_network`.
    """
    device, reporter = resolve_device(config.device), reporter or Reporter()
    with reproducible(config.threads, device), leaving_nothing():
        _, iteration, state, _ = _prepared(config, bundle, reporter, device, allow_dataset_mismatch)
        return forecast(iteration, state, reporter.on_note)


def _prepared(
    config: TrainConfig,
    bundle: PolicyFile | None,
    reporter: Reporter,
    device: torch.device,
    allow_dataset_mismatch: bool,
    split_of: PolicyBundle | None = None,
) -> tuple[TrainingSetup, Iteration, RunState, tuple[str, ...]]:
    """A training about to begin, and what tells its data set from the bundle's."""
    config.check_bundle(bundle is not None, bundle is not None and not bundle.has_network, allow_dataset_mismatch)
    searched = searched_bundle(bundle) or split_of
    if searched is not None:
        check_settings(config, searched, FREE_DATA_SETTINGS | (SPLIT_SETTINGS if allow_dataset_mismatch else set()))
    held_out = None if searched is None or allow_dataset_mismatch else searched.meta_validation
    comparison = None if searched is None else DatasetComparison(searched, allow_dataset_mismatch)
    if searched is not None and not allow_dataset_mismatch:
        check_before_download(config, searched)
    setup = TrainingSetup.build(config, device, held_out, comparison)
    setup.splits.tell(reporter.on_note)
    setup.splits.try_test()
    differences = () if comparison is None else comparison.differences
    if differences:
        reporter.on_note(_what_is_given_up(config, setup.splits.name, differences))
    if searched is not None and config.policy in SEARCHED_POLICIES:
        _check_channels(searched, setup)
    iteration, state = plan(config, bundle, setup, device, reporter.on_note)
    return setup, iteration, state, differences


def plan(
    config: TrainConfig,
    bundle: PolicyFile | None,
    setup: TrainingSetup,
    device: torch.device,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[Iteration, RunState]:
    """What an iteration does under this policy, and what of it moves."""
    modules: dict[str, nn.Module] = {"network": setup.network, **setup.selection.modules}
    optimizers: dict[str, Optimizer] = {"network": setup.optimizer}
    if config.policy not in SEARCHED_POLICIES:
        return WeightedIteration(setup, build_augmentation(config, setup.splits.name)), RunState(modules, optimizers)
    assert bundle is not None
    frozen = policy_of(bundle)
    searched = frozen.searched
    if searched is not None:
        config = as_searched(config, searched)
    if config.mode == "frozen":
        weights = frozen.weights(config, device, setup.communicator)
        context = None if searched is None or config.policy == "weights-only" else seen_by(searched, setup, device)
        return WeightedIteration(setup, frozen.augmentation(config), weights, context), RunState(modules, optimizers)

    assert searched is not None
    extractor, policy = FrozenExtractor(searched, device), searched.build_policy().to(device)
    # An alpha for each of the proxy's tensors means nothing to another network: it starts from their mean.
    rate = InnerRate(float(searched.alpha.log().mean().exp())).to(device)
    effects = searched.sample_effects
    start = SamplerStart(searched.probabilities, searched.means, searched.log_levels, effects)
    inputs = 0 if effects is None else len(effects.table)
    run = build_bilevel_run(
        config,
        setup,
        device,
        policy=policy,
        rate=rate,
        sampler=build_sampler(SamplerPlan(config, setup.iterations_per_epoch, start, inputs)),
        on_note=on_note,
        features=lambda batch: extractor(batch.images),
        context=seen_by(searched, setup, device),
    )
    return run.iteration, run.state


def seen_by(bundle: PolicyBundle, setup: TrainingSetup, device: torch.device) -> SampleContext | None:
    """What a bundle's draws see of the training images; None where they see nothing.

    Raises:
        InputError: they see the class, and the classes are others than the search's.
    """
    effects = bundle.sample_effects
    if effects is None:
        return None
    if effects.features is None:
        if len(setup.splits.classes) != len(effects.table):
            why = f"its draws depend on the class, of {len(effects.table)}; {setup.splits.name} has others"
            raise InputError(bundle.origin or "bundle", why, "search on this data set")
        return SampleContext.of_classes(setup)
    return SampleContext.of_features(setup, effects.features, FrozenExtractor(bundle, device, always=True))


def as_searched(config: TrainConfig, bundle: PolicyBundle) -> TrainConfig:
    """The configuration with the sampler and the weighting of the bundle's search, where it leaves them open.

    A frozen policy draws from the bundle alone, so the search's sampler need not be registered for it.

    Raises:
        InputError: the policy is fine-tuned, and its search's sampler is not registered here.
    """
    names = ("sampler", "sampler_input", "weighting") if config.mode == "finetune" else ("weighting",)
    # `LATER` has what a search did before it had these settings.
    searched = {name: bundle.manifest.search.settings.get(name, LATER[name]) for name in names}
    chosen = {name: value for name, value in searched.items() if getattr(config, name) == AS_SEARCHED}
    sampler = chosen.get("sampler", config.sampler)
    if config.mode == "finetune" and str(sampler) not in SAMPLERS:
        why = f"its search used the sampler {quoted(sampler)}, which is not registered here"
        raise InputError(bundle.origin or "bundle", why, HOW_TO_REGISTER)
    return config.with_changes(**chosen)


def _facts(iteration: Iteration) -> dict[str, str]:
    return {"step": iteration.bilevel.how} if isinstance(iteration, BilevelIteration) else {}


def _warnings(iteration: Iteration) -> list[str]:
    if not isinstance(iteration, BilevelIteration):
        return []
    return iteration.monitor.warnings(iteration.sampler, weighs=iteration.bilevel.options.weighs_by_policy)


def _what_is_given_up(config: TrainConfig, name: str, differences: tuple[str, ...]) -> str:
    return (
        f"warning: {escaped(name)} is not the bundle's data set ({'; '.join(differences)}). The bundle's split is "
        f"not used: this one is drawn with split_seed {config.split_seed}, and images that the policy learned from may "
        "be test images in it. Nothing says that the policy suits these images."
    )


def _check_channels(bundle: PolicyBundle, setup: TrainingSetup) -> None:
    channels = bundle.manifest.input.channels
    if setup.splits.channels != channels:
        why = f"its images have {setup.splits.channels} channels, the bundle's extractor takes {channels}"
        raise InputError(setup.splits.name, why, "use a bundle that was searched on such images")


def _refined(config: TrainConfig, bundle: PolicyBundle, state: RunState, iteration: Iteration) -> PolicyBundle:
    """The bundle with what fine-tuning has made of theta, alpha and p_jk."""
    assert state.sampler is not None
    assert isinstance(iteration, BilevelIteration)
    rate = state.modules["rate"]
    assert isinstance(rate, InnerRate)
    extractor = {
        name.removeprefix(EXTRACTOR_PREFIX): tensor
        for name, tensor in bundle.tensors.items()
        if name.startswith(EXTRACTOR_PREFIX)
    }
    noise = " Hypergradient with the noise at its mean." if has_unequal_noise(state.modules["network"]) else ""
    effects = bundle.sample_effects
    features = None if effects is None else effects.features
    draws = learned_draws(state.sampler, config.operation_space, features=features, course=config.level_course)
    return PolicyBundle.assemble(
        bundle.manifest.draft(
            levels=draws.levels,
            verification=None,  # it is another policy now
            results=bundle.manifest.results | iteration.monitor.figures(state.sampler),
            note=f"Policy {bundle.digest[:12]}, fine-tuned while training {config.arch} for {config.epochs} epochs."
            + noise,
        ),
        policy=state.modules["policy"].state_dict(),
        alpha=torch.full_like(bundle.alpha, float(rate().detach())),
        probabilities=draws.probabilities,
        means=draws.means,
        log_levels=draws.log_levels,
        effects=draws.effects,
        extractor=extractor,
        meta_validation=bundle.meta_validation,
        limits=bundle.limits,
    )
