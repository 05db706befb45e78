"""`mapolicy settings`: every setting, what it means and where its value comes from; also the page docs/settings.md."""

import difflib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import Annotated, Any

import typer

from .. import recipes
from ..config import RunConfig, SearchConfig, TrainConfig
from ..config.choices import FAST
from . import completion, display, options
from .grouped import grouped

# The commands that take a stage's settings.
TAKERS: Mapping[type[RunConfig], Sequence[str]] = {SearchConfig: ("search",), TrainConfig: ("train", "compare")}

# The headings of the page, each before the setting that it begins with.
SECTIONS: Mapping[str, str] = {
    "model_args": "Network and data",
    "base_augmentation": "Augmentation",
    "epochs": "Training",
    "validation_batch_size": "Policy and sampler",
    "meta_every": "Cost, memory and precision",
    "seed": "Machine and run",
    "proxy": "Only in a search",
    "arch": "Only in a training",
}
KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "table",
}
NAMED_RECIPES, LISTED_VALUES = 3, 4
LARGEST_WIDTH = 100  # characters of a line on a wide terminal
HEAD = """# Settings

A run takes its settings from a recipe, then from the bundle, then from the command line; a later source wins.
`mapolicy settings WORD` shows those with a word in their name, option or description. `--set KEY=VALUE` gives any of
them. Those that are used most have options of their own. This page is written by `mapolicy settings --markdown`.
"""


@dataclass(frozen=True)
class Setting:
    """A setting as people need to know it.

    Attributes:
        name: as `--set` and recipes spell it.
        description: what it means, in each stage that has it.
        values: its type and range, in words.
        default: its value where no recipe gives one; None where one must.
        required: whether it has no default.
        commands: those that take it.
        option: what to type for it, beside `--set`; None where there is nothing.
        recipes: names of recipes by the value that they give, most frequent value first, where it is not the default.
    """

    name: str
    description: str
    values: str
    default: Any
    required: bool
    commands: Sequence[str]
    option: str | None
    recipes: Mapping[str, Sequence[str]]

    @property
    def given_by(self) -> str:
        """What to type, and in which commands."""
        typed = f"`--set {self.name}=`" if self.option is None else f"`{self.option}`"
        return f"{typed} of {', '.join(self.commands)}"

    @property
    def usual(self) -> str:
        """The default, in words."""
        return "no default: recipes give it" if self.required else f"default {spelled(self.default)}"

    @property
    def changed_by(self) -> str:
        """The recipes that change it, in words; empty where none does."""
        lines = []
        for value, names in list(self.recipes.items())[:LISTED_VALUES]:
            more = f" and {len(names) - NAMED_RECIPES} more" if len(names) > NAMED_RECIPES else ""
            lines.append(f"{value} in {', '.join(names[:NAMED_RECIPES])}{more}")
        if len(self.recipes) > LISTED_VALUES:
            lines.append(f"others in {sum(map(len, list(self.recipes.values())[LISTED_VALUES:]))} more")
        if self.name in FAST:
            lines.append(f"{FAST[self.name]} with --fast")
        return "; ".join(lines)

    def is_about(self, word: str) -> bool:
        """Whether a word in small letters is in its name, option or description."""
        spelled_as_option = self.name.replace("_", "-")
        return word in f"{self.name} {spelled_as_option} {self.option or ''} {self.description}".lower()

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@grouped
def settings(
    *,
    context: typer.Context,
    word: Annotated[
        str | None,
        typer.Argument(
            help="Show only settings with it in their name, option or description.",
            metavar="WORD",
            autocompletion=completion.settings,
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/settings.md.", rich_help_panel=options.OUTPUT)
    ] = False,
    output: options.Output,
) -> None:
    """List the settings: meaning, default, range and option of each.

    Also shows the recipes that change a setting and the commands that take it.

    Example: mapolicy settings batch
    """
    known = all_settings()
    wanted = (word or "").strip("-=").lower()
    found = [each for each in known if each.is_about(wanted)]
    if output.as_json:
        display.print_json({"rows": [each.document() for each in found]})
    elif markdown:
        print(page(found), end="")
    elif found:
        print("\n\n".join(_paragraph(each) for each in found))
    elif commands := _commands_with(context, f"--{wanted}"):
        first = f"`mapolicy {commands[0]} --help` explains it"
        display.note(f"--{wanted} is no setting but an option of {', '.join(commands)}; {first}")
    else:
        close = difflib.get_close_matches(wanted, [each.name for each in known], n=3, cutoff=0.0)
        display.note(f"no setting has {word!r} in it; the closest are {', '.join(close)}")


def _commands_with(context: typer.Context, option: str) -> list[str]:
    """Names of the commands that have an option."""
    root: Any = context.find_root().command
    commands = {name: root.get_command(context, name) for name in root.list_commands(context)}
    return [name for name, each in commands.items() if any(option in parameter.opts for parameter in each.params)]


def all_settings() -> list[Setting]:
    """Every setting of both stages, in the order of their declaration."""
    schemas = {kind: kind.json_schema()["properties"] for kind in TAKERS}
    widest_first = sorted(recipes.names(), key=lambda name: (name.count("-"), not name.endswith("-any"), name))
    in_recipes = {name: recipes.load(name)[1] for name in widest_first}
    names = dict.fromkeys(name for schema in schemas.values() for name in schema)
    return [_setting(name, schemas, in_recipes) for name in names]


def _setting(
    name: str, schemas: Mapping[type[RunConfig], Mapping[str, Any]], in_recipes: Mapping[str, Mapping[str, Any]]
) -> Setting:
    kinds = [kind for kind, schema in schemas.items() if name in schema]
    described = {kind: schemas[kind][name] for kind in kinds}
    first = described[kinds[0]]
    texts = dict.fromkeys(each["description"] for each in described.values())
    description = "; in a training: ".join(texts)
    by_value: dict[str, list[str]] = {}
    for recipe, values in in_recipes.items():
        stage = next((kind for kind in kinds if recipe.startswith(kind.stage)), None)
        if stage is not None and name in values and values[name] != stage.defaults().get(name, _NOTHING):
            by_value.setdefault(spelled(values[name]), []).append(recipe)
    by_frequency = sorted(by_value.items(), key=lambda item: -len(item[1]))
    return Setting(
        name=name,
        description=description,
        values=_values(first),
        default=kinds[0].defaults().get(name),
        required=name not in kinds[0].defaults(),
        commands=tuple(command for kind in kinds for command in TAKERS[kind]),
        option=options.OPTION_OF.get(name),
        recipes=dict(by_frequency),
    )


_NOTHING = object()  # equals no setting's value


def spelled(value: Any) -> str:
    """A setting's value as TOML spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {spelled(item)}" for key, item in value.items()) + "}"
    return str(value) or '""'


def _values(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    kind = KINDS[schema["type"]]
    if "maximum" in schema:
        return f"{kind} from {_number(schema['minimum'])} to {_number(schema['maximum'])}"
    return f"{kind}, at least {schema['minimum']:g}" if "minimum" in schema else kind


def _number(value: float) -> str:
    return f"{value:g}" if value < 1 else f"{value:,.12g}"


def _paragraph(setting: Setting) -> str:
    """A setting on a terminal."""
    facts = (setting.description, f"{setting.values}; {setting.usual}", setting.given_by, setting.changed_by)
    lines = [setting.name]
    for fact in facts:
        lines += textwrap.wrap(
            fact.replace("`", ""),
            min(LARGEST_WIDTH, get_terminal_size().columns),
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def page(found: Sequence[Setting]) -> str:
    """The settings as Markdown, with a heading for each section and each setting."""
    lines = [HEAD]
    for setting in found:
        if setting.name in SECTIONS:
            lines.append(f"## {SECTIONS[setting.name]}\n")
        lines.append(f"### {setting.name}\n")
        lines.append(f"{setting.description}.\n")
        lines.append(f"- {setting.values}; {setting.usual}")
        lines.append(f"- {setting.given_by}")
        if setting.changed_by:
            lines.append(f"- {setting.changed_by}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
