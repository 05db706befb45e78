"""What a search on one's own images is set to: chosen from the data and the machine, and fitted into a time.

Pure functions: from a `DataProfile`, a `Machine` and measured `Costs` to choices, each with its reason. `RULES` lists
the settings that are chosen, in order. What the user typed is never chosen.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import SearchConfig
from ..data.batch_sampler import ENOUGH_BATCHES, SMALLEST_BATCH, fitting_batch
from ..data.profile import DataProfile
from ..data.stratify import per_class
from ..runtime.words import plural, plural_are

CPU_MINUTES, GPU_MINUTES = 10, 30  # of a search on one's own images, where the user names no budget
ENOUGH_ITERATIONS = 300  # in fewer a search has learned little (docs/evidence.md has 600)
FEWEST_CHECKED = 50  # iterations; a shorter search is not worth the time of its check
SHARE = 0.9  # of the budget that is planned; the rest is for what a measurement of seconds does not see
MOST_ITERATIONS = 2000  # of a set so small that the recipe's epochs are fewer
ENOUGH_HELD_OUT = 50  # meta-validation images
WANTED_HELD_OUT = 100
SHARES = (0.15, 0.2, 0.25)  # of the images for meta-validation, where the recipe's share is too few
LARGEST_CUTOUT = 32  # pixels
SMALL_SIDE, LARGE_SIDE = 24, 64  # pixels
USUAL_PROXY = "wrn10_1"  # of the measurements in docs/evidence.md
SIGN = re.compile(r"\d+|[^\W\d_]")  # a number or a letter


@dataclass(frozen=True)
class Machine:
    """What computes.

    Attributes:
        cuda: whether it is a GPU.
        parts: that a batch is divided into: processes times micro-batches.
    """

    cuda: bool = False
    parts: int = 1

    @property
    def usual_seconds(self) -> float:
        """Budget of a search on one's own images, where the user names none."""
        return 60.0 * (GPU_MINUTES if self.cuda else CPU_MINUTES)


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen.

    Attributes:
        setting: its name.
        value: the value.
        reason: why, in words.
    """

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Costs:
    """Seconds, measured on this machine.

    Attributes:
        learning: an iteration that learns the policy.
        other: an iteration that does not.
        check: an iteration of a training of the check.
        evaluation: the accuracy on the meta-validation images.
        once: what has passed since the command was typed, and what a search takes besides its iterations.
    """

    learning: float
    other: float
    check: float
    evaluation: float
    once: float


@dataclass(frozen=True)
class Outline:
    """The size of a search.

    Attributes:
        per_epoch: iterations of an epoch.
        training, held_out: number of training and meta-validation images.
        checked: number of trainings of the check by the setting `verification`; empty without a check.
        last_map: height and width of the proxy's last feature map; None where its features are no map.
    """

    per_epoch: int
    training: int
    held_out: int
    checked: Mapping[str, int] = field(default_factory=dict)
    last_map: tuple[int, int] | None = None


def in_words(seconds: float) -> str:
    """A time as `--budget` takes it, rounded up: 45s, 10m, 1.5h."""
    if seconds < 120:
        return f"{-int(-seconds // 1)}s"
    minutes = -int(-seconds // 60)
    return f"{minutes}m" if minutes < 120 else f"{-int(-minutes // 6) / 10:g}h"


def about(seconds: float) -> str:
    """A time for a sentence: 45s, 3.6m, 1.5h."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f}{unit}"
    return f"{-int(-seconds // 1)}s"


# ---- from the data


def choose(
    data: DataProfile, machine: Machine, config: SearchConfig, given: Collection[str]
) -> tuple[SearchConfig, tuple[Choice, ...]]:
    """Choose the settings that follow from the data and the machine.

    Args:
        data: the data set.
        machine: where the search runs.
        config: of the general recipe and the user.
        given: names of the settings that the user typed; they stay.

    Returns:
        The configuration, and what was chosen in the order of `RULES`.
    """
    fixed, choices = {*given}, []
    if "proxy" in fixed:
        fixed.add("model_args")  # they are another network's
    if config.pretrained or config.weights:
        fixed |= {"proxy", "model_args", "image_size"}  # they go with the weights
    for setting, rule in RULES.items():
        found = None if setting in fixed else rule(data, machine, config)
        if found is not None:
            value, reason = found
            config = config.with_changes(**{setting: value})
            choices.append(Choice(setting, value, reason))
    return config, tuple(choices)


Found = tuple[Any, str] | None


def _image_size(data: DataProfile, machine: Machine, config: SearchConfig) -> Found:
    size = f"the images' shorter side has {data.side} pixels (median)"
    if data.side < SMALL_SIDE:
        return max(8, data.side // 4 * 4), size
    if data.side < LARGE_SIDE:
        return 32, size
    if machine.cuda:
        return 64, f"{size}; 64 is quick on a GPU, and more shows finer details"
    return 32, f"{size}; 64 takes four times as long on a CPU"


def _proxy(data: DataProfile, machine: Machine, config: SearchConfig) -> Found:
    if machine.cuda:
        return "wrn16_2", "a GPU trains it about as fast as a smaller one"
    return USUAL_PROXY, "a CPU trains it in minutes; the policy serves larger networks too"


def _model_args(data: DataProfile, machine: Machine, config: SearchConfig) -> Found:
    if config.image_size < 32:
        return None
    side = -(-config.image_size // 8)
    return {
        "stem_stride": 2
    }, f"its first layer halves the images, for a quarter of the time; feature maps of {side} x {side} are left"


def _base_augmentation(data: DataProfile, machine: Machine, config: SearchConfig) -> Found:
    if data.drawn:
        return "none", "grey images of few values look like characters, which must not be mirrored"
    if all(SIGN.fullmatch(name) for name in data.names):
        listed = ", ".join(data.names[:3])
        return "none", f"classes named {listed} may be signs, which must not be mirrored; flip_crop mirrors and shifts"
    return "flip_crop", "images are mirrored and shifted; where that changes what they show, set none"


def _cutout(data: DataProfile, machine: Machine, config: SearchConfig) -> Found:
    if config.base_augmentation == "none":
        return 0, "nothing is erased, as there is no base augmentation"
    side = min(config.image_size // 2, LARGEST_CUTOUT)
    return side, f"a square of {side} pixels is erased from each training image"


def _validation_per_class(data: DataProfile, machine: Machine, config: SearchConfig) -> Found:
    found = sum(per_class(config.validation_per_class, data.sizes))
    if data.own_validation or found >= WANTED_HELD_OUT:
        return None
    images = {share: sum(per_class(share, data.sizes)) for share in SHARES}
    share = next((share for share in SHARES if images[share] >= WANTED_HELD_OUT), SHARES[-1])
    why = f"{images[share]} meta-validation images, from which the policy learns"
    return share, f"{why}; {config.validation_per_class:g} gives {found}"


def _batch_size(data: DataProfile, machine: Machine, config: SearchConfig) -> Found:
    images = training_images(data, config)
    size = fitting_batch(images, machine.parts)
    return size, f"{images} training images make {max(1, images // size)} batches an epoch"


def training_images(data: DataProfile, config: SearchConfig) -> int:
    """How many training images a configuration leaves of a data set."""
    test = 0 if data.own_test else sum(per_class(config.test_per_class, data.sizes))
    held_out = data.own_validation or sum(per_class(config.validation_per_class, data.sizes))
    images = max(0, data.images - data.damaged - test - held_out)
    if config.train_per_class:
        images = sum(per_class(config.train_per_class, data.sizes))
    aside = config.verify_per_class
    return images - round(aside * (images if aside < 1 else len(data.sizes)))


# In this order: a rule sees what the ones before it have chosen.
RULES: Mapping[str, Callable[[DataProfile, Machine, SearchConfig], Found]] = {
    "image_size": _image_size,
    "proxy": _proxy,
    "model_args": _model_args,
    "base_augmentation": _base_augmentation,
    "cutout": _cutout,
    "validation_per_class": _validation_per_class,
    "batch_size": _batch_size,
}


# ---- from the time

# From the best search to the cheapest: the first one that has `ENOUGH_ITERATIONS` within the budget is taken.
LADDER: tuple[Mapping[str, Any], ...] = (
    {"verification": "full", "meta_every": 1},
    {"verification": "short", "meta_every": 1},
    {"verification": "short", "meta_every": 2},
    {"verification": "short", "meta_every": 3},
    {"verification": "short", "meta_every": 6},
)
# Where a check leaves time for fewer than `FEWEST_CHECKED` iterations.
UNCHECKED: tuple[Mapping[str, Any], ...] = tuple({"verify": False, "meta_every": every} for every in (1, 2, 3, 6))
FITTED = frozenset({"epochs", "verify", *LADDER[0]})  # settings that `fit` chooses


def seconds(config: SearchConfig, outline: Outline, costs: Costs) -> float:
    """How long a search with its check takes."""
    rows = outline.checked.get(config.verification, 0) if config.verify else 0
    mean = costs.other + (costs.learning - costs.other) / config.meta_every
    epoch = outline.per_epoch * (mean + rows * costs.check) + costs.evaluation
    return costs.once + config.epochs * epoch + rows * costs.evaluation


def fit(
    budget: float, config: SearchConfig, outline: Outline, costs: Costs, given: Collection[str], most: int
) -> tuple[SearchConfig, tuple[Choice, ...]]:
    """The longest search that ends within a budget, with its check.

    Args:
        budget: seconds since the command was typed.
        config: of the search.
        outline: its size.
        costs: what its parts take.
        given: names of the settings that the user typed; they stay.
        most: epochs of a search that need not be longer.

    Returns:
        The configuration with `FITTED` settings, and what was chosen; nothing is chosen where the epochs are given.
    """
    if "epochs" in given:
        return config, ()
    fixed = {*given, *(() if outline.checked else ("verification", "verify"))}
    wanted = min(ENOUGH_ITERATIONS, most * outline.per_epoch)
    found = _longest(budget, _rungs(LADDER, config, fixed), outline, costs, most, wanted)
    if found.epochs * outline.per_epoch < min(FEWEST_CHECKED, wanted) and "verify" not in fixed:
        found = _longest(budget, _rungs(UNCHECKED, config, fixed), outline, costs, most, wanted)
    return found, _reasons(budget, config, found, outline, costs, most)


def _longest(
    budget: float, rungs: Sequence[SearchConfig], outline: Outline, costs: Costs, most: int, wanted: int
) -> SearchConfig:
    """The first rung that has the wanted iterations within the budget, else the one that has most."""
    fitted = [each.with_changes(epochs=_epochs(budget, each, outline, costs, most)) for each in rungs]
    longest = max(fitted, key=lambda each: (each.epochs, -seconds(each, outline, costs)))
    return next((each for each in fitted if each.epochs * outline.per_epoch >= wanted), longest)


def _reasons(
    budget: float, config: SearchConfig, found: SearchConfig, outline: Outline, costs: Costs, most: int
) -> tuple[Choice, ...]:
    """What `fit` has chosen, each with its reason."""
    checked = bool(outline.checked) and found.verify
    iterations, taken = found.epochs * outline.per_epoch, about(seconds(found, outline, costs))
    reason = f"{plural(iterations, 'iteration')} and the check" if checked else plural(iterations, "iteration")
    limit = "; longer is not needed" if found.epochs == most else ""
    take = "take" if checked or iterations > 1 else "takes"
    choices = [Choice("epochs", found.epochs, f"{reason} {take} about {taken} of {in_words(budget)} here{limit}")]
    if found.verify != config.verify:
        why = "whether the policy helps is not checked at the end, as that leaves too little time to learn it"
        choices.append(Choice("verify", found.verify, why))
    if found.verification != config.verification:
        trainings = outline.checked.get(found.verification, 0)
        why = f"{trainings} trainings check the policy at the end; more would take too long"
        choices.append(Choice("verification", found.verification, why))
    if found.meta_every != config.meta_every:
        why = f"the policy learns in one of {found.meta_every} iterations; in more of them it would take too long"
        choices.append(Choice("meta_every", found.meta_every, why))
    return tuple(choices)


def _rungs(ladder: Sequence[Mapping[str, Any]], config: SearchConfig, fixed: Collection[str]) -> list[SearchConfig]:
    """A configuration on each rung of a ladder; what its recipe has is never made dearer."""
    found = []
    for rung in ladder:
        changes = {**rung, "meta_every": max(config.meta_every, rung["meta_every"])}
        if config.verification != "full":
            changes.pop("verification", None)
        found.append(config.with_changes(**{name: value for name, value in changes.items() if name not in fixed}))
    return found


def _epochs(budget: float, config: SearchConfig, outline: Outline, costs: Costs, most: int) -> int:
    one, two = (seconds(config.with_changes(epochs=count, warmup_epochs=0), outline, costs) for count in (1, 2))
    fewest = config.warmup_epochs + 1
    return max(fewest, min(most, 1 + int((SHARE * budget - one) // max(two - one, 1e-9))))


def enough_time(
    config: SearchConfig, outline: Outline, costs: Costs, given: Collection[str], most: int
) -> tuple[float, int]:
    """The smallest budget in which a search with its check has enough iterations, and their number.

    Args:
        config: of the search, before `fit`.
        outline, costs, given, most: as of `fit`.
    """
    fixed = {*given, *(() if outline.checked else ("verification", "verify"))}
    cheapest = _rungs(LADDER, config, fixed)[-1]
    epochs = min(most, -(-ENOUGH_ITERATIONS // outline.per_epoch))
    least = cheapest.with_changes(epochs=max(epochs, cheapest.warmup_epochs + 1))
    return seconds(least, outline, costs) / SHARE, least.epochs * outline.per_epoch


def most_epochs(config: SearchConfig, outline: Outline, general: bool) -> int:
    """Epochs of a search that need not be longer: the recipe's, more for a tiny set under the general recipe."""
    return max(config.epochs, -(-MOST_ITERATIONS // outline.per_epoch)) if general else config.epochs


# ---- what cannot work


def problems(config: SearchConfig, outline: Outline, time: str | None = None) -> tuple[str, ...]:
    """What is likely to make a search useless, each with what to change; empty where nothing is.

    Args:
        config: of the search.
        outline: its size.
        time: what `too_little_time` says, where there is a budget; else None, and the epochs are to be changed.
    """
    lines, iterations = [], config.epochs * outline.per_epoch
    if time:
        lines.append(time)
    elif iterations < ENOUGH_ITERATIONS:
        lines.append(
            f"{plural_are(iterations, 'iteration')} too few to learn from, "
            f"{ENOUGH_ITERATIONS} are needed: give --epochs {-(-ENOUGH_ITERATIONS // outline.per_epoch)}"
        )
    if outline.per_epoch < ENOUGH_BATCHES and outline.training >= ENOUGH_BATCHES * SMALLEST_BATCH:
        size = outline.training // ENOUGH_BATCHES
        lines.append(
            f"an epoch has {plural(outline.per_epoch, 'iteration')}, fewer than {ENOUGH_BATCHES}: "
            f"give --batch-size {size}"
        )
    if outline.held_out < ENOUGH_HELD_OUT:
        lines.append(
            f"{plural_are(outline.held_out, 'meta-validation image')} too few "
            f"to learn from, {ENOUGH_HELD_OUT} are needed: add images, or raise validation_per_class"
        )
    if outline.last_map == (1, 1):
        size = config.image_size
        lines.append(
            f"the proxy's last feature map is 1 x 1 at {size} pixels, so it is lost where in the image something is: "
            f"set --image-size {2 * size} or {4 * size}, or a first layer with a smaller stride (docs/networks.md)"
        )
    return tuple(lines)


def too_little_time(
    budget: float, fitted: SearchConfig, outline: Outline, costs: Costs, enough: tuple[float, int]
) -> str:
    """What does not fit into a budget, and the budget into which everything does; empty where it does.

    Args:
        budget: seconds.
        fitted: the configuration that `fit` found.
        outline, costs: as of `fit`.
        enough: what `enough_time` says.
    """
    (needed, wanted), iterations = enough, fitted.epochs * outline.per_epoch
    taken = seconds(fitted, outline, costs)
    few = iterations < wanted
    if taken <= budget and not few:
        return ""
    told = in_words(budget)
    what = f"{plural(iterations, 'iteration')}{'' if fitted.verify or not outline.checked else ' and no check'}"
    fits = f"only {what} fit into {told}" if taken <= budget else f"even {what} take about {about(taken)}, not {told}"
    short = f", and a search needs {min(wanted, ENOUGH_ITERATIONS)}" if few else ""
    return f"{fits}{short}: give --budget {in_words(needed)}"
