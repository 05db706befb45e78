"""Stage one: learn an augmentation policy together with a proxy network, and put both into a bundle.

Algorithm 1 of MetaAugment (Zhou et al., AAAI 2021). Its twin, `train.py`, uses the bundle.
"""

import json
import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .bilevel.build_step import WORTH_COMPILING
from .bilevel.inner_rate import InnerRate
from .bundle import manifest
from .bundle.format import check_input_size
from .bundle.manifest_levels import Verification
from .config import SearchConfig
from .config.choices import CLASS, FEATURES, VERIFICATIONS, untagged
from .data.splits import DataSplits
from .distributed import communicator
from .errors import UsageError
from .inference.save import check_savable, describe_network, save_network
from .models.features import last_map
from .models.pretrained import start_weights
from .policy.compress import slim
from .policy.extractor import check_extractor
from .policy.network import PolicyNetwork
from .policy.policy_bundle import PolicyBundle
from .policy.sampler import relative_entropy
from .policy.samplers import LearnedDraws, SamplerPlan, build_sampler, learned_draws
from .runtime.device import reproducible, resolve_device
from .runtime.files import NETWORK_FILE, VERIFICATION_FILE
from .runtime.random import seed_for
from .training.build_iteration import BilevelRun, build_bilevel_run
from .training.callbacks import Reporter
from .training.draft_bundle import describe, describe_extractor
from .training.dry_run import WORTH_MEASURING, Forecast, forecast, forecast_before, leaving_nothing, time_iterations
from .training.evaluate import Accuracy
from .training.optim import theorem1_rate
from .training.pace import Deadline
from .training.plan import FITTED, Choice, Costs, Outline, enough_time, fit, most_epochs, problems, too_little_time
from .training.sample_context import DIRECTIONS, ProxyContext, SampleContext, build_context
from .training.setup import TrainingSetup, start_network
from .training.step_time import timed
from .training.trainer import Trainer
from .training.verify import candidates, left_out, training_seconds, verification_step_seconds, verify
from .transforms.space import SPACES

MEASURED = 20  # iterations of each kind, to plan
MEASURED_SHARE = 0.02  # of the budget, for each measurement
GRACE = 0.1  # of the budget, by which a check may end too late
OVERHEAD = 2.5  # CPU seconds of a search besides its iterations, such as building the networks and ending Python
SLOWEST = 5.0  # seconds of a CPU second, where other processes take the rest


def search_policy(
    config: SearchConfig,
    reporter: Reporter | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    out: Path | None = None,
    splits: DataSplits | None = None,
    deadline: float | None = None,
) -> PolicyBundle:
    """Search a policy; the test split is not opened.

    In a process group of torch every process calls it alike and returns the same bundle.

    Args:
        config: the search, complete.
        reporter: hears of the progress; None for silence.
        run_dir: folder for configuration, log, checkpoints and result; None writes nothing.
        resume: go on from the checkpoint in `run_dir`; without one, start from the beginning.
        overwrite: remove the files of an earlier run from `run_dir`, once everything else is in order.
        out: file that the bundle is written to before the run counts as done, and without its check before that
            begins; None leaves saving it to the caller.
        splits: the data set, where it has been loaded with these settings already (`plan_search`); None loads it.
        deadline: by `time.monotonic()`, for the end of the check: it leaves out what does not fit. A resumed search
            leaves out the same.

    Returns:
        The bundle.

    Raises:
        UsageError, InputError: the configuration, the network or the data cannot be used.
        TrainingError: a loss is not finite, or memory has run out.
        EnvironmentFault: the run folder or the bundle cannot be written.
    """
    if communicator().rank:
        reporter, run_dir, out = None, None, None  # rank 0 tells and writes
    reporter = reporter or Reporter()
    device = resolve_device(config.device)
    with reproducible(config.threads, device) as threads:
        search = PreparedSearch.prepared(config, reporter, threads, device, splits)
        if run_dir is not None:
            check_savable(config, search.setup.splits, search.setup.network)
        expected, check = search.measured(config, device, reporter, resume)
        told = config.compile != "auto" or search.setup.iterations >= WORTH_COMPILING
        facts = {"step": search.run.step.how} if told else {}
        state, setup = search.run.state, search.setup
        with Trainer(
            config, state, setup, reporter, run_dir, resume, overwrite, None, facts, expected, afterwards=check
        ) as run:
            cost_ratio = run.loop(search.run.iteration)
            bundle, result = search.ended(config, device, reporter, run_dir, out, deadline)
            if run_dir is not None:
                description = describe_network(config, setup.splits, setup.network, bundle.digest)
                save_network(run_dir / NETWORK_FILE, setup.network, description)
            if out is not None:
                bundle.save(out)
            run.finish({**result, "cost_ratio": cost_ratio, "step": search.run.step.how})
    return bundle


def forecast_search(
    config: SearchConfig, reporter: Reporter | None = None, splits: DataSplits | None = None
) -> Forecast:
    """What `search_policy` would take: it does a few iterations and writes nothing.

    Args:
        config, reporter, splits: as of `search_policy`.

    Raises:
        UsageError, InputError, TrainingError: as `search_policy`.
    """
    device, reporter = resolve_device(config.device), reporter or Reporter()
    with reproducible(config.threads, device) as threads, leaving_nothing():
        search = PreparedSearch.prepared(config, reporter, threads, device, splits)
        expected = forecast(search.run.iteration, search.run.state, reporter.on_note)
        return expected.with_check(search.check_seconds(config, device))


@dataclass(frozen=True)
class PlannedSearch:
    """A search that has been fitted into a time.

    Attributes:
        config: of the search, complete.
        splits: its data set.
        choices: what was chosen, with reasons.
        problems: what is likely to make it useless, each with what to change.
        deadline: of `search_policy`; None where nothing was fitted into a time.
    """

    config: SearchConfig
    splits: DataSplits
    choices: tuple[Choice, ...]
    problems: tuple[str, ...]
    deadline: float | None = None


def plan_search(
    config: SearchConfig,
    budget: float | None,
    given: Collection[str] = (),
    general: bool = True,
    started: float | None = None,
    reporter: Reporter | None = None,
) -> PlannedSearch:
    """Load a search's data set, measure a few iterations and choose as many epochs as fit into a budget.

    Args:
        config: of the search; its epochs are the most that are needed.
        budget: seconds from `started` to the end of the policy's check; None measures and chooses nothing.
        given: names of the settings that stay.
        general: whether the settings are the general recipe's; a tiny data set then gets more epochs than its.
        started: `time.monotonic()` at the start; None is now.
        reporter: hears what the user should know of the data set.

    Raises:
        UsageError, InputError, TrainingError: as `search_policy`.
    """
    began = time.monotonic() if started is None else started
    if communicator().rank:
        reporter = None  # rank 0 tells
    device = resolve_device(config.device)
    choices: tuple[Choice, ...] = ()
    time_problem, deadline = "", None
    fits = budget is not None and "epochs" not in given
    measured = config.with_changes(compile="never")  # compiling would be most of the measurement
    if fits and "meta_every" not in given:
        measured = measured.with_changes(meta_every=2)  # iterations of both kinds
    with reproducible(config.threads, device) as threads:
        search = PreparedSearch.prepared(measured if fits else config, reporter or Reporter(), threads, device)
        outline = search.outline(config)
        if fits and budget is not None:
            costs = search.costs(measured, device, bool(outline.checked), began, MEASURED_SHARE * budget)
            most = most_epochs(config, outline, general)
            enough = enough_time(config, outline, costs, given, most)
            config, choices = fit(budget, config, outline, costs, given, most)
            time_problem = too_little_time(budget, config, outline, costs, enough)
            deadline = began + (1 + GRACE) * budget
    # Clocks differ between processes: all do what the first one chose.
    chosen = {name: getattr(config, name) for name in sorted(FITTED)}
    config = config.with_changes(**json.loads(communicator().broadcast(json.dumps(chosen).encode())))
    return PlannedSearch(config, search.setup.splits, choices, problems(config, outline, time_problem), deadline)


@dataclass(frozen=True)
class PreparedSearch:
    """A search about to begin."""

    setup: TrainingSetup
    run: BilevelRun
    threads: int
    context: SampleContext | None = None

    @classmethod
    def prepared(
        cls,
        config: SearchConfig,
        reporter: Reporter,
        threads: int,
        device: torch.device,
        splits: DataSplits | None = None,
    ) -> "PreparedSearch":
        """Build everything that a search needs; `splits` as of `search_policy`.

        Raises:
            UsageError, InputError: as `search_policy`.
        """
        # A search whose bundle could not be written or loaded would only be found out at its end.
        check_input_size(config.image_size, "the proxy")
        if splits is None:
            setup = TrainingSetup.build(config, device)
            setup.splits.tell(reporter.on_note)
        else:
            setup = TrainingSetup.over(config, splits, device)
        describe(config, setup, threads, device, Accuracy(0.0, 0.0))  # raises; the figures are not known yet
        proxy, splits = manifest.Extractor(**describe_extractor(config, setup)), setup.splits
        fresh = check_extractor(proxy, len(splits.classes), splits.channels, "the proxy")
        _check_untagged(config, fresh, setup.network)

        torch.manual_seed(seed_for(config.seed, config.stage, "policy", 0))
        width = SPACES[config.operation_space].embedding_width
        policy = PolicyNetwork(setup.feature_width, width, policy_input=config.policy_input).to(device)
        tensors = len(list(setup.network.parameters())) if config.alpha == "per-layer" else None
        constant = config.constant_rates
        if constant and setup.iterations < 3:
            raise UsageError(
                "schedule theorem1", f"log log T is not positive for T = {setup.iterations}", "train longer"
            )
        alpha = theorem1_rate(config.alpha_initial, setup.iterations) if constant else config.alpha_initial
        rate = InnerRate(alpha, tensors).to(device)
        inputs = {CLASS: len(splits.classes), FEATURES: min(DIRECTIONS, setup.feature_width)}
        plan = SamplerPlan(config, setup.iterations_per_epoch, inputs=inputs.get(config.sampler_input, 0))
        sampler = build_sampler(plan)
        context = build_context(setup, sampler)
        run = build_bilevel_run(
            config,
            setup,
            device,
            policy=policy,
            rate=rate,
            sampler=sampler,
            on_note=reporter.on_note,
            extractor=_own_extractor(config, setup, device),
            context=context,
        )
        return cls(setup, run, threads, context)

    def outline(self, config: SearchConfig) -> Outline:
        """The search's size, with all its trainings."""
        setup, checked = self.setup, {}
        if config.verify and self.draws(config).log_levels is not None:
            checked = {name: len(candidates(config.alignment_strength, name)) for name in VERIFICATIONS}
        return Outline(
            per_epoch=setup.iterations_per_epoch,
            training=len(setup.training),
            held_out=len(setup.splits.meta_validation),
            checked=checked,
            last_map=last_map(setup.network, config.image_size, setup.splits.channels),
        )

    def costs(self, config: SearchConfig, device: torch.device, checked: bool, started: float, at_most: float) -> Costs:
        """Measure the parts of a search that has not begun, each for `at_most` seconds."""
        each = time_iterations(self.run.iteration, self.run.state, MEASURED, at_most).each(statistics.mean)
        check = 0.0
        if checked:
            draws, splits = self.draws(config), self.setup.splits
            check = verification_step_seconds(config, splits, device, draws, self.context, MEASURED, at_most)
        _, evaluation = timed(self.setup.validation_accuracy, device)
        if evaluation < at_most:  # the first one is the slower one, and another one is affordable
            _, evaluation = timed(self.setup.validation_accuracy, device)
        passed = time.monotonic() - started
        shared = min(SLOWEST, max(1.0, passed / max(time.process_time(), 1e-3)))
        return Costs(each[0], each[-1], check, evaluation, passed + OVERHEAD * shared)

    def measured(
        self, config: SearchConfig, device: torch.device, reporter: Reporter, resume: bool
    ) -> tuple[Forecast | None, float]:
        """What the run will take, and the seconds of its check; nothing is measured of a run that is short."""
        expected = forecast_before(self.run.iteration, self.run.state, resume, reporter.on_note)
        worth = resume or self.setup.iterations >= WORTH_MEASURING
        check = self.check_seconds(config, device) if worth else 0.0
        return None if expected is None else expected.with_check(check), check

    def ended(
        self,
        config: SearchConfig,
        device: torch.device,
        reporter: Reporter,
        run_dir: Path | None,
        out: Path | None,
        deadline: float | None,
    ) -> tuple[PolicyBundle, dict[str, Any]]:
        """What follows the last iteration: the bundle and its figures; arguments as of `search_policy`."""
        if isinstance(self.context, ProxyContext):
            self.context.refresh()  # the bundle's extractor is the proxy as it is now
        accuracy, figures = self.setup.validation_accuracy(), self.run.figures()
        for warning in self.run.warnings():
            reporter.on_note(warning)
        checked = self.is_checked(config)
        if checked and any(communicator().largest(out is not None)):  # rank 0 alone has a file
            unchecked, _ = self.bundle(config, accuracy, figures)
            if out is not None:
                unchecked.save(out)
                reporter.on_note(f"{out} is written; the check of its policy begins")
        verification, strength = self.verified(config, device, reporter, run_dir, deadline)
        bundle, effect = self.bundle(config, accuracy, figures, verification, strength)
        missing = left_out(config, verification) if checked else []
        return bundle, {
            **effect,
            **({"check_left_out": missing} if missing else {}),
            "digest": bundle.digest,
            "validation_top1": accuracy.top1,
            "alpha": float(self.run.rate().detach().mean()),
            "entropy": relative_entropy(self.run.sampler.probabilities),
            **figures,
        }

    def draws(self, config: SearchConfig, strength: float | None = None) -> LearnedDraws:
        """What the sampler has learned; `strength` replaces its own."""
        features = self.context.features if isinstance(self.context, ProxyContext) else None
        return learned_draws(self.run.sampler, config.operation_space, strength, features, config.level_course)

    def is_checked(self, config: SearchConfig) -> bool:
        """Whether the policy is checked after the search."""
        return config.verify and self.draws(config).log_levels is not None

    def check_seconds(self, config: SearchConfig, device: torch.device) -> float:
        """How long the policy's own check will take; 0 without one."""
        if not self.is_checked(config):
            return 0.0
        each = training_seconds(config, self.setup.splits, device, self.draws(config), self.context)
        return len(candidates(config.alignment_strength, config.verification)) * each

    def verified(
        self,
        config: SearchConfig,
        device: torch.device,
        reporter: Reporter,
        run_dir: Path | None,
        deadline: float | None = None,
    ) -> tuple[Verification | None, float | None]:
        """How the policy does in its own check, and the strength that does best; None where it is not checked."""
        if not self.is_checked(config):
            if config.verify:
                reporter.on_note(f"the policy is not checked: sampler {config.sampler} learns no levels")
            return None, None
        record, draws = None if run_dir is None else run_dir / VERIFICATION_FILE, self.draws(config)
        until = None if deadline is None else Deadline(deadline, communicator())
        return verify(config, self.setup.splits, device, draws, reporter, record, self.context, until)

    def bundle(
        self,
        config: SearchConfig,
        accuracy: Accuracy,
        figures: Mapping[str, float],
        verification: Verification | None = None,
        strength: float | None = None,
    ) -> tuple[PolicyBundle, dict[str, Any]]:
        """What has been found, and what a smaller `extractor_dtype` changes; `strength` replaces the sampler's own."""
        draws = self.draws(config, strength)
        bundle = PolicyBundle.assemble(
            describe(
                config,
                self.setup,
                self.threads,
                self.setup.pipeline.device,
                accuracy,
                figures,
                draws.levels,
                verification,
            ),
            policy=self.run.step.policy.state_dict(),
            alpha=self.run.rate().detach(),
            probabilities=draws.probabilities,
            means=draws.means,
            log_levels=draws.log_levels,
            effects=draws.effects,
            extractor=(self.run.step.extractor or self.setup.network).state_dict(),
            meta_validation=self.setup.splits.meta_validation.indices,
        )
        if config.extractor_dtype == "float32":
            return bundle, {}
        bundle, difference = slim(bundle, config.extractor_dtype, drop_classifier=False)
        return bundle, {"effect_on_weights": vars(difference)}


def _own_extractor(config: SearchConfig, setup: TrainingSetup, device: torch.device) -> nn.Module | None:
    """A second network of the proxy's kind with weights of its own, where the configuration asks for one."""
    if config.extractor == "shared":
        return None
    return start_network(config, setup.splits, device, "extractor", start_weights(config))[0]


def _check_untagged(config: SearchConfig, fresh: nn.Module, network: nn.Module) -> None:
    """Check that the proxy's name without its tag, which the bundle records, builds the same tensors.

    Raises:
        UsageError: it does not: the tag's weights are for images of another size.
    """
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (fresh, network)]
    if shapes[0] != shapes[1]:
        why = f"its tag changes the network, and a bundle records {untagged(config.proxy)} alone"
        raise UsageError(f"proxy {config.proxy}", why, f"add --model-arg img_size={config.image_size}")
