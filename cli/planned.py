"""A search's plan on the command line: what is chosen from the data, the machine and the time, and how it is told."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import SearchConfig
from ..errors import UsageError
from ..runtime import rank_environment
from ..runtime.files import CONFIG_FILE
from .options import OPTION_OF, Run, StageSettings
from .resolve import general_recipe

if TYPE_CHECKING:
    from ..search import PlannedSearch
    from ..training.callbacks import Reporter
    from ..training.plan import Choice

UNDECIDED = "wrn10_1"  # stands for the proxy until it is chosen
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

Budget = Annotated[
    str | None,
    typer.Option(
        help="Time for the search and its check, such as 90s, 10m or 2h; none for the recipe's epochs.",
        metavar="TIME",
        show_default="10m on a CPU and 30m on a GPU; none where the data set has a recipe",
    ),
]


def parse_budget(text: str) -> float | None:
    """Seconds of `90s`, `10m`, `1.5h` or `2d`; None for `none`.

    Raises:
        UsageError: it is none of these.
    """
    if text == "none":
        return None
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smhd])", text, re.ASCII)
    if found is None or float(found[1]) == 0:
        raise UsageError("--budget", f"{text!r} is no time", "write 90s, 10m, 2h or none")
    return float(found[1]) * UNITS[found[2]]


@dataclass
class Planner:
    """What is left to choose of a search's settings.

    Attributes:
        given: names of the settings that the user typed.
        general: whether settings are chosen from the data, because the data set has no recipe of its own.
        budget: seconds; None for no limit; 0 for the usual one of the machine.
        started: `time.monotonic()` when the command was typed.
        choices: what has been chosen.
    """

    given: frozenset[str]
    general: bool
    budget: float | None
    started: float
    choices: tuple["Choice", ...] = ()

    @classmethod
    def of(cls, recipe: str, given: frozenset[str], budget: str | None, started: float) -> "Planner | None":
        """The planner of a command; None where there is nothing to choose.

        Raises:
            UsageError: the budget is no time, or the epochs are given too.
        """
        general = recipe == general_recipe(SearchConfig)
        seconds: float | None = 0.0 if general else None
        if budget is not None:
            seconds = parse_budget(budget)
            if seconds is not None and "epochs" in given:
                raise UsageError("--budget", "the epochs are given, so the time follows", "leave one of the two out")
        return cls(given, general, seconds, started) if general or seconds is not None else None

    def choose(self, config: SearchConfig) -> SearchConfig:
        """Choose the settings that follow from the data and the machine, where there is no recipe.

        Raises:
            UsageError, InputError, EnvironmentFault: the data set cannot be opened.
        """
        from ..data.dataset_factory import open_dataset
        from ..data.profile import profile
        from ..distributed import communicator
        from ..runtime.device import resolve_device
        from ..training.plan import Machine, choose

        machine = Machine(resolve_device(config.device).type == "cuda", communicator().size * config.accumulate)
        if self.budget == 0:
            self.budget = machine.usual_seconds
        if self.general:
            config, self.choices = choose(profile(open_dataset(config), config), machine, config, self.given)
        return config

    def fit(self, config: SearchConfig, reporter: "Reporter") -> "PlannedSearch":
        """Load the data set and choose the epochs for the time."""
        from ..search import plan_search

        planned = plan_search(config, self.budget, self.given, self.general, self.started, reporter)
        self.choices += planned.choices
        return replace(planned, choices=self.choices)


def of_run(settings: StageSettings, folder: Path) -> StageSettings | None:
    """The settings of the run in a folder: a resumed run does not plan again. None where there is none."""
    path = folder / CONFIG_FILE
    return replace(settings, recipe=str(path)) if path.is_file() else None


def own_settings(iterations: int, typed: Collection[str]) -> frozenset[str]:
    """Settings of a search that a training after it does not repeat: epochs that the time has cut too short."""
    from ..training.plan import ENOUGH_ITERATIONS

    short = iterations < ENOUGH_ITERATIONS and "epochs" not in typed
    return frozenset({"epochs", "warmup_epochs"} - {*typed}) if short else frozenset()


def tell(plan: "PlannedSearch", reporter: "Reporter", run: Run) -> None:
    """Say before the start what was chosen and what cannot work; a dry run prints it at its end (`shown`)."""
    if rank_environment.rank() > 0 or run.dry_run:
        return
    if not run.quiet:
        for name, text in _lines(plan.choices).items():
            reporter.on_note(f"{name} {text}")
    for problem in plan.problems:
        reporter.on_note(f"warning: {problem}")


def shown(plan: "PlannedSearch | None") -> tuple[dict[str, str], dict[str, Any]]:
    """The plan as lines by name, and as plain values for JSON; both are empty without one."""
    if plan is None:
        return {}, {}
    warnings = {"warning" + " " * number: problem for number, problem in enumerate(plan.problems)}
    document = {"plan": [vars(each) for each in plan.choices], "problems": list(plan.problems)}
    return _lines(plan.choices) | warnings, document


def _lines(choices: Sequence["Choice"]) -> dict[str, str]:
    """By setting its value, the reason, and what to type for another value."""
    return {each.setting: f"{_value(each.value)}: {each.reason} ({_option(each)})" for each in choices}


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _option(choice: "Choice") -> str:
    option = OPTION_OF.get(choice.setting, f"--set {choice.setting}=")
    if isinstance(choice.value, dict):
        return ", ".join(f"{option} {key}=" for key in choice.value)
    return option
