"""Stage one: learn an augmentation policy together with a proxy network, and put both into a bundle.

Algorithm 1 of MetaAugment (Zhou et al., AAAI 2021). Its twin, `train.py`, uses the bundle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .bilevel.inner_rate import InnerRate
from .bundle import manifest
from .bundle.format import check_input_size
from .config import CLASS, FEATURES, SearchConfig, untagged
from .distributed import communicator
from .errors import UsageError
from .inference.save import check_savable, describe_network, save_network
from .models.noise import has_unequal_noise
from .models.pretrained import start_weights
from .policy.compress import slim
from .policy.extractor import check_extractor
from .policy.network import HIDDEN_UNITS, PolicyNetwork
from .policy.policy_bundle import PolicyBundle
from .policy.sampler import relative_entropy
from .policy.samplers import LearnedDraws, SamplerPlan, build_sampler, learned_draws
from .runtime.device import reproducible, resolve_device
from .runtime.files import NETWORK_FILE, VERIFICATION_FILE
from .runtime.machine import versions
from .runtime.random import seed_for
from .training.build_iteration import BilevelRun, build_bilevel_run
from .training.callbacks import Reporter
from .training.dry_run import Forecast, forecast, forecast_before
from .training.evaluate import Accuracy
from .training.optim import theorem1_rate
from .training.sample_context import DIRECTIONS, ProxyContext, SampleContext, build_context
from .training.setup import TrainingSetup, start_network
from .training.trainer import Trainer
from .training.verify import verification_seconds, verify
from .transforms.space import SPACES


def search_policy(
    config: SearchConfig,
    reporter: Reporter | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    out: Path | None = None,
) -> PolicyBundle:
    """Search a policy; the test split is not opened.

    In a process group of torch every process calls it alike and returns the same bundle.

    Args:
        config: the search, complete.
        reporter: hears of the progress; None for silence.
        run_dir: folder for configuration, log, checkpoints and result; None writes nothing.
        resume: go on from the checkpoint in `run_dir`; without one, start from the beginning.
        overwrite: remove the files of an earlier run from `run_dir`, once everything else is in order.
        out: file that the bundle is written to before the run counts as done; None leaves saving it to the caller.

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
        search = PreparedSearch.prepared(config, reporter, threads, device)
        if run_dir is not None:
            check_savable(config, search.setup.splits, search.setup.network)
        expected = forecast_before(search.run.iteration, search.run.state, resume)
        if expected is not None:
            expected = expected.with_check(search.check_seconds(config, device))
        facts = {"step": search.run.step.how}
        with Trainer(
            config, search.run.state, search.setup, reporter, run_dir, resume, overwrite, facts=facts, expected=expected
        ) as run:
            cost_ratio = run.loop(search.run.iteration)
            if isinstance(search.context, ProxyContext):
                search.context.refresh()  # the bundle's extractor is the proxy as it is now
            accuracy, figures = search.setup.validation_accuracy(), search.run.figures()
            for warning in search.run.warnings():
                reporter.on_note(warning)
            verification, strength = search.verified(config, device, reporter, run_dir)
            bundle = search.bundle(config, accuracy, figures, verification, strength)
            effect = {}
            if config.extractor_dtype != "float32":
                bundle, difference = slim(bundle, config.extractor_dtype, drop_classifier=False)
                effect = {"effect_on_weights": vars(difference)}
            if run_dir is not None:
                proxy, splits = search.setup.network, search.setup.splits
                save_network(run_dir / NETWORK_FILE, proxy, describe_network(config, splits, proxy, bundle.digest))
            if out is not None:
                bundle.save(out)
            run.finish(
                {
                    **effect,
                    "digest": bundle.digest,
                    "validation_top1": accuracy.top1,
                    "alpha": float(search.run.rate().detach().mean()),
                    "entropy": relative_entropy(search.run.sampler.probabilities),
                    **figures,
                    "cost_ratio": cost_ratio,
                    "step": search.run.step.how,
                }
            )
    return bundle


def forecast_search(config: SearchConfig, reporter: Reporter | None = None) -> Forecast:
    """What `search_policy` would take: it does a few iterations and writes nothing.

    Raises:
        UsageError, InputError, TrainingError: as `search_policy`.
    """
    device = resolve_device(config.device)
    with reproducible(config.threads, device) as threads:
        search = PreparedSearch.prepared(config, reporter or Reporter(), threads, device)
        expected = forecast(search.run.iteration, search.run.state)
        return expected.with_check(search.check_seconds(config, device))


@dataclass(frozen=True)
class PreparedSearch:
    """A search about to begin."""

    setup: TrainingSetup
    run: BilevelRun
    threads: int
    context: SampleContext | None = None

    @classmethod
    def prepared(cls, config: SearchConfig, reporter: Reporter, threads: int, device: torch.device) -> "PreparedSearch":
        """Build everything that a search needs.

        Raises:
            UsageError, InputError: as `search_policy`.
        """
        # A search whose bundle could not be written or loaded would only be found out at its end.
        check_input_size(config.image_size, "the proxy")
        setup = TrainingSetup.build(config, device)
        setup.splits.tell(reporter.on_note)
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

    def draws(self, config: SearchConfig, strength: float | None = None) -> LearnedDraws:
        """What the sampler has learned; `strength` replaces its own."""
        features = self.context.features if isinstance(self.context, ProxyContext) else None
        return learned_draws(self.run.sampler, config.operation_space, strength, features)

    def check_seconds(self, config: SearchConfig, device: torch.device) -> float:
        """How long the policy's own check will take; 0 without one."""
        draws = self.draws(config)
        if not config.verify or draws.log_levels is None:
            return 0.0
        return verification_seconds(config, self.setup.splits, device, draws, self.context)

    def verified(
        self, config: SearchConfig, device: torch.device, reporter: Reporter, run_dir: Path | None
    ) -> tuple[manifest.Verification | None, float | None]:
        """How the policy does in its own check, and the strength that does best; None where it is not checked."""
        draws = self.draws(config)
        if not config.verify or draws.log_levels is None:
            if config.verify:
                reporter.on_note(f"the policy is not checked: sampler {config.sampler} learns no levels")
            return None, None
        record = None if run_dir is None else run_dir / VERIFICATION_FILE
        return verify(config, self.setup.splits, device, draws, reporter, record, self.context)

    def bundle(
        self,
        config: SearchConfig,
        accuracy: Accuracy,
        figures: Mapping[str, float],
        verification: manifest.Verification | None = None,
        strength: float | None = None,
    ) -> PolicyBundle:
        """What has been found; `strength` replaces the sampler's own."""
        draws = self.draws(config, strength)
        return PolicyBundle.assemble(
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


def _circumstances(setup: TrainingSetup) -> dict[str, str | int]:
    """What the bundle records besides the settings: names, a network without a true gradient, processes, weights.

    The number of processes matters because batch statistics and noise are those of each process's part. Weights are
    named for the reader alone: nothing loads them on a bundle's word.
    """
    found: dict[str, str | int] = {"dataset": setup.splits.name, "proxy": untagged(setup.config.network)}
    if has_unequal_noise(setup.network):
        found["hypergradient_noise"] = "mean"
    if setup.weights is not None:
        found |= {"weights_of": setup.config.network, "weights_sha256": setup.weights.digest}
    if setup.communicator.size > 1:
        found["processes"] = setup.communicator.size
    return found


def describe_extractor(config: SearchConfig, setup: TrainingSetup) -> dict[str, Any]:
    """The proxy as the bundle will hold it: fields of `manifest.Extractor`."""
    return {
        "arch": untagged(config.proxy),
        "model_args": config.model_args,
        "feature_width": setup.feature_width,
        "dtype": "float32",
        "call": manifest.EXTRACTOR_CALL,
    }


def describe(
    config: SearchConfig,
    setup: TrainingSetup,
    threads: int,
    device: torch.device,
    accuracy: Accuracy,
    figures: Mapping[str, float] | None = None,
    levels: manifest.Levels | None = None,
    verification: manifest.Verification | None = None,
) -> manifest.ManifestDraft:
    """What the bundle says about itself.

    Raises:
        UsageError: it cannot say this; one line names the field.
    """
    splits = setup.splits
    # A validation split of the data set's own is taken whole.
    validation_per_class = 0.0 if splits.own_validation else config.validation_per_class
    return manifest.draft_manifest(
        versions=versions(),
        operations=manifest.Operations.of(config.operation_space, config.fill),
        policy={"hidden": HIDDEN_UNITS, "input": config.policy_input},
        alpha=config.alpha,
        extractor=describe_extractor(config, setup),
        input={
            "size": config.image_size,
            "channels": splits.channels,
            "mean": splits.mean,
            "std": splits.std,
            "base_augmentation": config.base_augmentation,
            "cutout": config.cutout,
        },
        dataset={
            "name": splits.name,
            "classes": splits.classes,
            "counts": {
                "images": splits.pool_size,
                "train": len(splits.train) + (0 if splits.aside is None else len(splits.aside)),
                "meta_validation": len(splits.meta_validation),
            },
            "fingerprint": splits.fingerprint,
            "split": {
                "seed": config.split_seed,
                "train_per_class": config.train_per_class,
                "validation_per_class": validation_per_class,
                "test_per_class": config.test_per_class,
            },
        },
        search={
            "settings": config.portable()
            | {"dataset": splits.name, "validation_per_class": validation_per_class}
            | _circumstances(setup)
        },
        run={
            "epochs": config.epochs,
            "iterations": config.epochs * setup.iterations_per_epoch,
            "threads": threads,
            "device": device.type,
        },
        results={f"validation_{name}": value for name, value in vars(accuracy).items()} | dict(figures or {}),
        licence="",
        note="",
        levels=levels,
        verification=verification,
        reading=manifest.Reading.of(splits.reading.to_dict()),
    )
