"""The next command to type after a search or a training: complete, so that it can be copied."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import RunConfig, TrainConfig
from ..errors import MapolicyError
from .options import OPTION_OF
from .resolve import resolve

# Settings that a user who gave them wants again, where the next command's own recipe says something else.
REPEATED = (
    *("epochs", "batch_size", "learning_rate", "workers", "data_dir", "device", "skip_corrupt"),
    *("pretrained", "weights", "freeze"),
)


def after_search(config: RunConfig, bundle: Path, bundle_settings: Mapping[str, Any], policy: str | None = None) -> str:
    """A training of the proxy's architecture on the search's data set.

    Args:
        config: the search's.
        bundle: its file.
        bundle_settings: what a training takes from it.
        policy: for `--policy`; None trains with what was learned.
    """
    choice = [] if policy is None else ["--policy", policy]
    return _command("train", config, bundle, bundle_settings, choice)


def whether_it_helps(config: RunConfig, bundle: str | Path, bundle_settings: Mapping[str, Any]) -> str:
    """A comparison of the bundle's policy with others, for the network of a search or a training."""
    return _command("compare", config, bundle, bundle_settings, ["--seeds", "5"])


def _command(
    command: str, config: RunConfig, bundle: str | Path, bundle_settings: Mapping[str, Any], choice: list[str]
) -> str:
    # A bundle knows a folder's name but not its place, and never opens what timm's readers may download.
    named = [config.dataset] if ":" in config.dataset or "/" in config.dataset else []
    network = ["--bundle", str(bundle), "--arch", config.network]
    for key, value in config.model_args.items():
        network += ["--model-arg", f"{key}={_toml(value)}"]
    words = ["mapolicy", command, *named, *network, *choice, *_settings(config, bundle_settings)]
    return shlex.join(words)


def _settings(config: RunConfig, bundle_settings: Mapping[str, Any]) -> list[str]:
    """The options that give the next run the settings that this one had."""
    try:
        usual, _ = resolve(TrainConfig, config.network, config.dataset, bundle_settings=bundle_settings)
    except MapolicyError:  # this run's recipe may be for a data set that the next command finds no recipe for
        return []
    words = []
    for name in REPEATED:
        value = getattr(config, name)
        if value and value != getattr(usual, name):
            words += [OPTION_OF[name]] if value is True else [OPTION_OF[name], _toml(value)]
    return words


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
