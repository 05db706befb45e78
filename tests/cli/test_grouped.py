"""Groups of options: declared once, in the help of every command that takes them."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from mapolicy.cli.grouped import grouped
from typer.testing import CliRunner


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="Of the image.", min=1)] = 3
    tall: Annotated[bool, typer.Option("--tall", help="Twice as high.")] = False

    @property
    def height(self) -> int:
        return self.width * (2 if self.tall else 1)


@grouped
def draw(
    *,
    name: Annotated[str, typer.Argument(help="Of the file.")],
    size: Size,
    loud: Annotated[bool, typer.Option("--loud", help="Say so.")] = False,
) -> None:
    """Draw a picture."""
    print(name, size.width, size.height, loud)


@pytest.fixture
def run():
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(draw)
    return lambda *arguments: CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("cat",), "cat 3 3 False"),
        (("cat", "--width", "4", "--tall"), "cat 4 8 False"),
        (("--loud", "cat", "--width", "5"), "cat 5 5 True"),
    ],
)
def test_a_command_gets_one_object_for_a_group(run, arguments: tuple[str, ...], shown: str) -> None:
    assert run(*arguments).output.strip() == shown


def test_the_options_of_a_group_are_the_commands_own(run) -> None:
    text = run("--help").output
    assert "Draw a picture." in text
    assert text.index("--width") < text.index("--tall") < text.index("--loud")
    assert "Of the image.  [default: 3; x>=1]" in text
    assert run("cat", "--width", "0").exit_code == 2
    assert run("cat", "--height", "1").exit_code == 2


def test_two_groups_cannot_have_the_same_option() -> None:
    def twice(*, one: Size, other: Size) -> None:
        """Take it twice."""

    with pytest.raises(ValueError, match="duplicate parameter name: 'width'"):
        grouped(twice)
