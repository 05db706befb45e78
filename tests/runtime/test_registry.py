"""The table of named entries: what it refuses, what it suggests, and that it imports late."""

import sys

import pytest

from mapolicy.errors import UsageError
from mapolicy.runtime.registry import Registry


def table() -> Registry[object]:
    return Registry("tool", built_in=[("Hammer", "for nails", "this:that"), ("saw", "for wood", len)], reserved=["all"])


def test_names_descriptions_and_objects() -> None:
    tools = table()
    assert (list(tools), len(tools), "saw" in tools, "plane" in tools) == (["Hammer", "saw"], 2, True, False)
    assert [(entry.name, entry.description, entry.built_in) for entry in tools.entries()] == [
        ("Hammer", "for nails", True),
        ("saw", "for wood", True),
    ]
    assert tools.find("saw") is tools["saw"] is len
    with pytest.raises(KeyError):
        tools["plane"]

    @tools.register("plane", "for planks")
    def plane() -> int:
        return 1

    assert plane() == 1
    assert tools.find("plane") is plane
    tools.remove("plane")
    assert "plane" not in tools


def test_an_object_given_by_name_is_imported_at_its_first_use(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_tool.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    tools = table()
    tools.add("late", "comes late", "late_tool:answer")
    assert "late_tool" not in sys.modules
    assert tools.find("late") == 42
    del sys.modules["late_tool"]


@pytest.mark.parametrize(
    ("name", "description", "why"),
    [
        ("saw", "again", "exists already"),
        ("all", "everything", "exists already"),
        ("a b", "spaces", "is not a name"),
        ("-x", "a flag", "is not a name"),
        ("x", "", "one line"),
        ("x", "two\nlines", "one line"),
    ],
)
def test_refused_entries(name: str, description: str, why: str) -> None:
    tools = table()
    with pytest.raises(ValueError, match=why):
        tools.register(name, description)(object())
    assert list(tools) == ["Hammer", "saw"]


def test_an_unknown_name_gets_suggestions() -> None:
    for name, remedy in (
        ("hammr", "did you mean Hammer?"),
        ("x", "use one of Hammer, saw, or name its plugin in MAPOLICY_PLUGINS"),
    ):
        with pytest.raises(UsageError) as caught:
            table().find(name)
        assert str(caught.value) == f"tool: there is none called {name!r}; {remedy}"


def test_what_is_built_in_stays() -> None:
    with pytest.raises(ValueError, match="is built in"):
        table().remove("saw")
    with pytest.raises(UsageError):
        table().remove("x")
