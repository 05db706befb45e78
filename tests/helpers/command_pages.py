"""Pages that are made from the command line: docs/reference/commands.md, and docs/reference/recipe-list.md.

python tests/helpers/command_pages.py        # writes both anew; tests/test_docs.py compares
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mapolicy.cli.help import parameters
from mapolicy.cli.main import COMMANDS, app

from mapolicy import recipes

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
COMMANDS_HEAD = """# Commands

Every command with its arguments and options, as `mapolicy COMMAND --help` shows them. [What to
type](../how-to/what-to-type.md) lists them by purpose. This page is written by `python
tests/helpers/command_pages.py`.
"""
RECIPES_HEAD = """# List of recipes

What `mapolicy recipes` lists; [recipes](recipes.md) says how one is chosen. This page is written by `python
tests/helpers/command_pages.py`.

| recipe | what it is | command |
|---|---|---|
"""


def commands_page() -> str:
    root: Any = typer.main.get_command(app)
    lines = [COMMANDS_HEAD]
    for panel, commands in COMMANDS.items():
        lines.append(f"## {panel}\n")
        for name in commands:
            lines += section(f"mapolicy {name}", root.commands[name], typer.Context(root, info_name="mapolicy"))
    return "\n".join(lines).rstrip() + "\n"


def section(title: str, command: Any, above: Any) -> Iterator[str]:
    """The Markdown of a command; of a group, that of its commands."""
    yield f"### {title}\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        text = " ".join(paragraph.split())
        example = text.removeprefix("Example: ")
        yield f"```text\n{example}\n```\n" if example != text else f"{escaped(text)}\n"
    context = typer.Context(command, info_name=title.split()[-1], parent=above)
    for panel, rows in parameters(command, context).items():
        named = [(name, text) for name, text in rows if not name.endswith("--help")]
        if named:
            yield f"*{panel}*\n"
            yield from (f"- `{name}`: {escaped(text)}".rstrip(": ") for name, text in named)
            yield ""
    for name, each in getattr(command, "commands", {}).items():
        yield from section(f"{title} {name}", each, context)


def recipes_page() -> str:
    rows = (f"| `{each.name}` | {escaped(each.description)} | `{each.command}` |" for each in recipes.described())
    return RECIPES_HEAD + "\n".join(rows) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text


PAGES = {REFERENCE / "commands.md": commands_page, REFERENCE / "recipe-list.md": recipes_page}

if __name__ == "__main__":
    for path, write in PAGES.items():
        path.write_text(write(), encoding="utf-8")
