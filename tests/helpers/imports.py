"""Every import of the distribution, read from its source; `python -m tests.helpers.imports` draws the rooms.

A room is a package below `mapolicy`, or a module at its top. A floor is a room's distance from the lowest one, counted
along the longest chain of imports.
"""

import ast
import graphlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where a package's folder lies; the same table as in pyproject.toml, which a test compares.
FOLDERS = {"mapolicy": "mapolicy", "mapolicy.cli": "cli", "mapolicy.recipes": "recipes"}


@dataclass(frozen=True)
class Import:
    """`what` is imported by `module`; `late` inside a function, `typing` for type checkers alone."""

    module: str
    what: str
    late: bool
    typing: bool


def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of the distribution by its full name; a package's `__init__` has the package's name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            inner = inner[:-1] if inner[-1] == "__init__" else inner
            found[".".join((package, *inner))] = path, ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(module: str, tree: ast.Module, is_package: bool, known: Iterable[str]) -> Iterator[Import]:
    """All imports of a module; of our own modules by their full names."""
    known = set(known)

    def walk(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, late, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            base = parents[: len(parents) - node.level + is_package] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield Import(module, inner if inner in known else source, late, typing)
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                yield from walk(child, late, True)
            for child in node.orelse:
                yield from walk(child, late, typing)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, late, typing)

    return walk(tree, False, False)


MODULES = sources()
ALL_IMPORTS = [
    entry
    for module, (path, tree) in MODULES.items()
    for entry in imports(module, tree, path.name == "__init__.py", MODULES)
]
OWN_IMPORTS = [entry for entry in ALL_IMPORTS if entry.what.split(".")[0] == "mapolicy"]


def room(module: str) -> str:
    """The package below `mapolicy` that a module is in, or the module itself; `mapolicy` is its `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def arrows(entries: Iterable[Import] = OWN_IMPORTS) -> set[tuple[str, str]]:
    """Which room imports from which other room."""
    pairs = {(room(entry.module), room(entry.what)) for entry in entries}
    return {(importer, imported) for importer, imported in pairs if importer != imported}


def floors() -> dict[str, int]:
    """How high each room lies; raises graphlib.CycleError where rooms import each other."""
    below: dict[str, set[str]] = {room(module): set() for module in MODULES}
    for importer, imported in arrows():
        below[importer].add(imported)
    height: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(below).static_order():
        height[name] = max((height[other] + 1 for other in below[name]), default=0)
    return height


if __name__ == "__main__":
    heights = floors()
    for floor in range(max(heights.values()), -1, -1):
        print(f"{floor:2}  {'  '.join(sorted(name for name, height in heights.items() if height == floor))}")
    print(f"{len(heights)} rooms, {max(heights.values()) + 1} floors, {len(arrows())} arrows, {len(MODULES)} modules")
