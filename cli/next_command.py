"""The next command to type after a search or a training: complete, so that it can be copied."""

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RunConfig, SearchConfig, TrainConfig
from ..errors import MapolicyError
from ..runtime.plugins import VARIABLE
from .options import OPTION_OF
from .resolve import resolve

if TYPE_CHECKING:
    from ..bundle.load import SearchedFile
    from ..bundle.manifest_base import PolicyFile

# What a search says of the trainings after it; the rest is in its bundle, or about learning the policy.
OF_A_SEARCH = frozenset(
    {
        *("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "decay_all", "clip_norm"),
        *("warmup_epochs", "label_smoothing", "balance", "accumulate", "precision", "batch_norm"),
        *("pretrained", "weights", "freeze", "normalisation", "layer_decay"),
        *("data_dir", "skip_corrupt", "workers", "memory_limit_gib", "threads", "device"),
    }
)
# What a comparison of the same training does not repeat: it is named otherwise, varies it, or says where it runs.
NOT_COMPARED = frozenset({"dataset", "download", "arch", "model_args", "policy", "mode"})
NO_OPTION = frozenset({"on_divergence"})  # of a comparison


def after_search(
    config: SearchConfig,
    bundle: Path,
    bundle_settings: Mapping[str, Any],
    policy: str | None = None,
    own: Collection[str] = (),
) -> str:
    """A training of the proxy's architecture on the search's data set.

    Args:
        config: the search's.
        bundle: its file.
        bundle_settings: what a training takes from it.
        policy: for `--policy`; None trains with what was learned.
        own: settings that are the search's alone.
    """
    choice = _mode(config) if policy is None else ["--policy", policy]
    return _command("train", config, bundle, bundle_settings, choice, OF_A_SEARCH.difference(own))


def whether_it_helps(
    config: SearchConfig, bundle: Path, bundle_settings: Mapping[str, Any], own: Collection[str] = ()
) -> str:
    """A comparison of the policy that a search found with others, for the proxy's architecture; `own` as above."""
    choice = ["--seeds", "5", *_mode(config)]
    return _command("compare", config, bundle, bundle_settings, choice, OF_A_SEARCH.difference(own))


def _mode(config: SearchConfig) -> list[str]:
    """The mode that a policy needs: a frozen one does not see the training loss."""
    return ["--mode", "finetune"] if config.weighting == "policy" and config.policy_input == "loss" else []


def whether_it_helped(
    config: TrainConfig, bundle: str, bundle_settings: Mapping[str, Any], recipe: str | None, limits: Sequence[str]
) -> str:
    """A comparison of the policy that a training used with others, with the settings of the training.

    Args:
        config: the training's.
        bundle: its policy, as the user named it.
        bundle_settings: what a training takes from it.
        recipe: of `--recipe`.
        limits: of `--limit`.
    """
    choice = ["--seeds", "5"]
    if config.mode == "finetune":
        choice += ["--mode", "finetune"]
    for limit in limits:
        choice += ["--limit", limit]
    repeated = TrainConfig.settings().keys() - NOT_COMPARED
    return _command("compare", config, bundle, bundle_settings, choice, repeated, recipe)


def with_any_network(bundle: str, policy: "PolicyFile | SearchedFile") -> str:
    """A training with a bundle that has just arrived; ARCH, DATASET and PATH are for the user to fill in."""
    dataset = policy.data_settings().get("dataset", "DATASET")
    named = [dataset.replace("folder:", "folder:PATH/")] if not policy.has_network or ":" in dataset else []
    return command("train", *named, "--bundle", bundle, "--arch", "ARCH")


def command(*words: str) -> str:
    """A command as it is typed here: with the plugins that the environment names in front of it."""
    plugins = os.environ.get(VARIABLE)
    return (f"{VARIABLE}={shlex.quote(plugins)} " if plugins else "") + shlex.join(["mapolicy", *words])


def _command(
    name: str,
    config: RunConfig,
    bundle: str | Path,
    bundle_settings: Mapping[str, Any],
    choice: Sequence[str],
    repeated: Collection[str],
    recipe: str | None = None,
) -> str:
    named = [dataset] if (dataset := _named(config, bundle_settings)) is not None else []
    words = ["--bundle", str(bundle), "--arch", config.network]
    for key, value in config.model_args.items():
        words += ["--model-arg", f"{key}={_toml(value)}"]
    if recipe is not None:
        words += ["--recipe", recipe]
    return command(name, *named, *words, *choice, *_settings(config, bundle_settings, repeated, recipe))


def _named(config: RunConfig, bundle_settings: Mapping[str, Any]) -> str | None:
    """The data set where the command has to name it; None where the bundle says enough.

    A bundle knows a folder's name but not its place, and never opens what timm's readers may download.
    """
    enough = bundle_settings.get("dataset") == config.dataset and not {":", "/"} & {*config.dataset}
    return None if enough else config.dataset


def _settings(
    config: RunConfig, bundle_settings: Mapping[str, Any], repeated: Collection[str], recipe: str | None
) -> list[str]:
    """The options that give the next run the settings that this one had."""
    wanted = {name: getattr(config, name) for name in type(config).settings() if name in repeated}
    given: dict[str, Any] = {name: wanted[name] for name in ("pretrained", "weights") if wanted.get(name)}
    given["model_args"] = config.model_args
    for _ in range(3):  # an option may change the recipe, or what follows from the weights
        try:
            usual, _ = resolve(
                TrainConfig,
                config.network,
                _named(config, bundle_settings),
                recipe=recipe,
                bundle_settings=bundle_settings,
                flags=given,
            )
        except MapolicyError:  # this run's recipe may be for a data set that the next command finds no recipe for
            return []
        differ = {name: value for name, value in wanted.items() if getattr(usual, name) != value}
        if not differ:
            break
        given |= differ
    return [word for name, value in given.items() if name != "model_args" for word in _option(name, value)]


def _option(name: str, value: Any) -> list[str]:
    option = OPTION_OF.get(name)
    if option is None or name in NO_OPTION or value in ("", False):
        return ["--set", f"{name}={_toml(value)}"]
    return [option] if value is True else [option, _toml(value)]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
