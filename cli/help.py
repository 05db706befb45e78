"""The look of `--help`: commands and options in panels, two columns each, at any width of the terminal.

typer's own panels have up to six columns, which leaves a third of 80 characters for the sentences, and they read
square brackets in a help text as markup.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

NARROW, LONGEST_NAME = 50, 30  # characters: of a terminal without borders, and of the widest first column
OUTPUT = "Output"  # the panel of options about what is shown
Row = tuple[str, str]


class HelpCommand(TyperCommand):
    """A command whose help is in panels."""

    @override
    def format_help(self, ctx: Any, formatter: Any) -> None:
        show(self, ctx, {})


class HelpGroup(TyperGroup):
    """A group of commands whose help is in panels."""

    @override
    def format_help(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[Row]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panels.setdefault(command.rich_help_panel or "Commands", []).append((name, summary(command.help)))
        show(self, ctx, panels)


def summary(text: str | None) -> str:
    """The first paragraph of a help text, on one line."""
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def show(command: Any, ctx: Any, commands: dict[str, list[Row]]) -> None:
    """Print a command's help on stdout.

    Args:
        command: a command or a group.
        ctx: its context.
        commands: rows by panel, of a group.
    """
    console = Console(highlight=False, emoji=False, markup=False)
    console.print(Text(f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}", style="bold"))
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        console.print()
        # The terminal wraps an example by itself, so that it can be copied as one line.
        console.print(Text(" ".join(paragraph.split())), soft_wrap=paragraph.startswith("Example: "))
    console.print()
    for title, rows in commands.items():
        _print_panel(console, title, rows)
    for title, rows in parameters(command, ctx).items():
        if rows:
            _print_panel(console, title, rows)


def parameters(command: Any, ctx: Any) -> dict[str, list[Row]]:
    """The rows of a command's arguments and options by panel."""
    panels: dict[str, list[Row]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        record = None if getattr(parameter, "hidden", False) else parameter.get_help_record(ctx)
        if record is None:
            continue
        name, text = _plainly(*record)
        panel = getattr(parameter, "rich_help_panel", None)
        if parameter.param_type_name == "argument":
            panels[panel or "Arguments"].append((name.removesuffix(" NAME"), text))
        else:
            of_help = OUTPUT if parameter.name == "help" and OUTPUT in panels else "Options"
            panels.setdefault(panel or of_help, []).append((name, text))
    if OUTPUT in panels:  # the last one, and `--help` is its last row
        panels[OUTPUT] = panels.pop(OUTPUT)
    return panels


def _plainly(name: str, text: str) -> Row:
    """A parameter's row, without typer's spelling of types and ranges: `--seeds N`, "1 to 10000"."""
    name = re.sub(r"<?\b(int|float|INTEGER|FLOAT)( range| RANGE)?\b>?", "N", name)
    name = re.sub(r"<(list\[)?(str|path|Path)\]?>|\bTEXT\b", "NAME", name)
    text = re.sub(r"(-?[\d.]+)<=x<=(-?[\d.]+)", r"\1 to \2", text)
    return name, re.sub(r"x>=(-?[\d.]+)", r"at least \1", re.sub(r"default: \(([^)]*)\)", r"default: \1", text))


def _print_panel(console: Console, title: str, rows: Iterable[Row]) -> None:
    table = Table.grid(padding=(0, 2))
    widest = max(len(name) for name, _ in rows)
    table.add_column(style="cyan", min_width=min(widest, LONGEST_NAME), max_width=LONGEST_NAME, overflow="fold")
    table.add_column(ratio=1)
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    if console.width < NARROW:
        console.print(Text(title, style="bold"))
        console.print(table)
    else:
        console.print(Panel(table, title=title, title_align="left", border_style="dim"))
