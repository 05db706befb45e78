"""From recipe, bundle and command line to one configuration."""

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from .. import recipes
from ..config import RunConfig
from ..errors import InputError, UsageError
from .typed_command import completed

Config = TypeVar("Config", bound=RunConfig)

FINETUNE = "train-finetune"
USUAL_NETWORK = "resnet18"  # in the command of an error


def resolve(
    kind: type[Config],
    network: str | None,
    dataset: str | None,
    *,
    recipe: str | None = None,
    bundle_settings: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    settings: Sequence[str] | None = None,
    model_arguments: Sequence[str] | None = None,
    usual: Mapping[str, Any] | None = None,
) -> tuple[Config, str]:
    """The configuration, and the recipe's name: settings of the recipe, then the bundle, the flags and `--set`.

    A network that starts from weights sees images of the size and interpolation that these were trained on, unless the
    flags, `--set` or a recipe's file of the user's say otherwise. A recipe's warm-up is cut to fewer epochs than the
    user's.

    Args:
        kind: of the stage.
        network: from the command line; None takes the recipe's.
        dataset: likewise.
        recipe: name or file; None finds the one of data set and network, or `train-finetune` for a training that
            starts from weights.
        bundle_settings: settings that the bundle fixes.
        flags: settings by name; None stands for a flag that was not given.
        settings: `key=value` of `--set`.
        model_arguments: `key=value` of `--model-arg`.
        usual: settings that the general recipe lacks.

    Raises:
        UsageError: a flag or `--set` is wrong, or no data set was named.
        InputError: the recipe is wrong.
    """
    given = typed(flags, settings, model_arguments)
    from_bundle = dict(bundle_settings or {})
    named = dataset or given.get("dataset") or from_bundle.get("dataset")
    if "weights" in given:
        given.setdefault("pretrained", False)  # a recipe's word, which the file replaces
    if recipe is None and named is None:
        raise UsageError("DATASET", "no data set was named", "name one, or give --bundle or --recipe")
    if recipe is None and kind.stage == "train" and (given.get("pretrained") or given.get("weights")):
        recipe = FINETUNE
    if dataset or "dataset" in given:
        from_bundle.pop("download", None)  # the user named the data set, so it may be downloaded
    source, values = recipes.load(recipe) if recipe else recipes.find(kind.stage, str(named), network)
    values = {**(usual or {} if source == general_recipe(kind) else {}), **values, **from_bundle}
    if named is not None:
        values["dataset"] = named
    if network is not None:
        values[kind.network_field] = network
    if source.startswith("recipe ") and kind.network_field not in {**values, **given}:
        raise _no_network(kind, named, has_policy=bundle_settings is not None or "policy" in given)
    # A mistake in the recipe is no mistake in the command: check the recipe alone first.
    kind.from_mapping({"dataset": "?", kind.network_field: "?"} | values, source, InputError)
    epochs = given.get("epochs")
    if source.startswith("recipe ") and type(epochs) is int and values.get("warmup_epochs", 0) >= epochs > 0:
        values["warmup_epochs"] = epochs - 1  # the recipe's fits its own epochs
    config = kind.from_mapping({**values, **given}, "command line", UsageError)
    if not (config.pretrained or config.weights):
        return config, source
    from ..models.factory import check_arch
    from ..models.pretrained import network_input

    check_arch(config.network)
    users = set(given) if source.startswith("recipe ") else {*values, *given}
    own = network_input(config)
    found = {} if own is None else {"image_size": own.size, "interpolation": own.interpolation}
    return config.with_changes(**{name: found[name] for name in (found.keys() & set(kind.settings())) - users}), source


def typed(
    flags: Mapping[str, Any] | None = None,
    settings: Sequence[str] | None = None,
    model_arguments: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The settings that the user typed, by name; arguments as of `resolve`.

    Raises:
        UsageError: a text is not KEY=VALUE.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    given |= dict(_key_value("--set", text) for text in settings or [])
    if arguments := dict(_key_value("--model-arg", text) for text in model_arguments or []):
        given["model_args"] = arguments
    return given


def general_recipe(kind: type[RunConfig]) -> str:
    """What `resolve` calls the recipe of data sets that have none of their own."""
    return f"recipe {kind.stage}-{recipes.ANY}"


def no_policy(dataset: object, *words: str) -> str:
    """What to type for a training that has neither a policy nor a bundle; `words` are what else it lacks."""
    search = shlex.join(["mapolicy", "search", str(dataset)])
    return (
        f"type {completed(words=[*words, '--policy', 'none'])} (or trivialaugment), or learn a policy first: {search}"
    )


def _no_network(kind: type[RunConfig], dataset: object, has_policy: bool) -> UsageError:
    words = (f"--{kind.network_field}", USUAL_NETWORK)
    remedy = f"type {completed(words=words)} (`mapolicy archs` has more)" if has_policy else no_policy(dataset, *words)
    return UsageError(f"--{kind.network_field}", "no network was named", remedy)


def _key_value(flag: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(flag, f"{text!r} is not KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
