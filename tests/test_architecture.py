"""The house stands: imports go downwards, packages are listed, torch comes late, nothing unpickles or evaluates."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mapolicy

ROOT = Path(__file__).resolve().parent.parent
# Where a package's folder lies; the same table as in pyproject.toml, which a test compares.
FOLDERS = {"mapolicy": "mapolicy", "mapolicy.cli": "cli", "mapolicy.recipes": "recipes"}

# From the lowest to the highest. A module imports from lower layers, or from its own where that makes no cycle.
LAYERS = (
    "affine blend errors kernels launch pointwise space reporting stopping "
    "models models.contract models.noise models.pyramidnet models.shake_shake models.wide_resnet",
    "lock",
    "config distributed features files loggers folding forward_mode graph_merging limits operations precision refusal "
    "runtime side_by_side",
    "augment canonical_json hypergradients images manifest_fields networks parts policy report.tables summary "
    "synchronised transformation web weighted_step",
    "bilevel hub image_sets notation report.curves sampler sealed splits",
    "manifest tensor_container",
    "access bundle_format checkpoint compiled datasets optimisation timm_datasets",
    "extractor monitor published step_choice",
    "autoalbument description opening report.figures",
    "bundle card chart data export importing policies",
    "contenders pipeline",
    "evaluate reuse",
    "adapters slim task weighing",
    "explanation",
    "iteration run_folder",
    "cost",
    "run",
    "forecast",
    "search train",
    "report report.changes report.samples",
    "report.gathering",
    "report.page",
    "explore",
    "combination",
    "pacing",
    "compare",
    "bench bench.interleaved bench.memory bench.pillow bench.synthetic",
    "bench.double_backward bench.report",
    "bench.operations bench.step bench.transfer",
    "__init__",
    "recipes",
    "cli.display cli.options",
    "cli.bench cli.compare cli.demo cli.explain cli.export cli.import_policy cli.inspect cli.listing "
    "cli.pull cli.push cli.report cli.search cli.slim cli.train",
    "cli.explore",
    "cli cli.main",
    "cli.entry",
    "__main__",
)
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names.split()}


@dataclass(frozen=True)
class Import:
    """`what` is imported by `module`; `late` inside a function, `typing` for type checkers alone."""

    module: str
    what: str
    late: bool
    typing: bool


def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of the distribution by its full name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            inner = inner[:-1] if inner[-1] == "__init__" and (package, len(inner)) != ("mapolicy", 1) else inner
            found[".".join((package, *inner))] = path, ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = sources()


def short(module: str) -> str:
    return module.removeprefix("mapolicy.")


def imports(module: str, tree: ast.Module, is_package: bool, known: set[str]) -> Iterator[Import]:
    """All imports of a module, of our own modules by their full names."""

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


def package_of(module: str, path: Path) -> bool:
    return path.name == "__init__.py" and not module.endswith(".__init__")


def own_module(name: str) -> str:
    """The key in `LAYER` of something of ours: `mapolicy` itself is its `__init__`."""
    return "__init__" if name == "mapolicy" else short(name)


ALL_IMPORTS = [
    entry
    for module, (path, tree) in MODULES.items()
    # mapolicy/__init__.py is called mapolicy.__init__ here, so that its dots already count from within the package.
    for entry in imports(module, tree, package_of(module, path), set(MODULES))
]
OWN_IMPORTS = [entry for entry in ALL_IMPORTS if entry.what.split(".")[0] == "mapolicy"]


def upward(entries: list[Import]) -> list[str]:
    return [
        f"{entry.module} imports {entry.what}"
        for entry in entries
        if LAYER[own_module(entry.what)] > LAYER[short(entry.module)]
    ]


# ---- (a) who imports whom


def test_every_file_is_read() -> None:
    files = [path for folder in ("mapolicy", "cli", "recipes") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 35
    assert sorted(files) == sorted(path for path, _ in MODULES.values())
    assert len(OWN_IMPORTS) > 150
    for entry in OWN_IMPORTS:
        assert own_module(entry.what) in {own_module(name) for name in MODULES} | {"__init__"}, entry


def test_every_module_has_a_layer() -> None:
    names = " ".join(LAYERS).split()
    assert len(names) == len(set(names))
    assert set(names) == {short(module) for module in MODULES}


def test_imports_go_downwards() -> None:
    assert upward(OWN_IMPORTS) == []


def test_no_cycle_at_import_time() -> None:
    graph: dict[str, set[str]] = {}
    for entry in OWN_IMPORTS:
        if not entry.late and not entry.typing:
            graph.setdefault(own_module(entry.module), set()).add(own_module(entry.what))
    assert len(graph) > 30
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    ("module", "line", "seen"),
    [
        ("mapolicy.errors", "from .search import search_policy", "mapolicy.search"),
        ("mapolicy.errors", "from . import search", "mapolicy.search"),
        ("mapolicy.errors", "import mapolicy.search", "mapolicy.search"),
        ("mapolicy.errors", "from mapolicy import search_policy", "mapolicy"),
        ("mapolicy.models.wide_resnet", "from ..config import RunConfig", "mapolicy.config"),
        ("mapolicy.models.wide_resnet", "def f():\n    from ..cli import main", "mapolicy.cli.main"),
        ("mapolicy.config", "from . import recipes", "mapolicy.recipes"),
        ("mapolicy.search", "def f():\n    from .train import train_network\n    import mapolicy.cli", "mapolicy.cli"),
    ],
)
def test_the_guard_sees_an_upward_import(module: str, line: str, seen: str) -> None:
    entries = list(imports(module, ast.parse(line), False, set(MODULES)))
    assert upward(entries) == [f"{module} imports {seen}"]


def is_library(module: str) -> bool:
    return not module.startswith(("mapolicy.cli", "mapolicy.recipes"))


def test_only_main_knows_the_command_line() -> None:
    of_cli = {entry.module for entry in OWN_IMPORTS if short(entry.what).split(".")[0] == "cli"}
    assert {module for module in of_cli if not module.startswith("mapolicy.cli")} == {"mapolicy.__main__"}


def test_library_has_no_typer_no_rich_and_prints_nothing() -> None:
    for entry in ALL_IMPORTS:
        if not entry.module.startswith("mapolicy.cli"):
            assert entry.what.split(".")[0] not in ("typer", "click", "rich"), entry
    printed = [
        module
        for module, (_, tree) in MODULES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == "print")
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"))
    ]
    assert set(printed) <= {module for module in MODULES if module.startswith("mapolicy.cli")}
    assert "mapolicy.cli.display" in printed


# ---- (b) what is packaged


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_listed_packages_are_the_folders() -> None:
    setuptools = project()["tool"]["setuptools"]
    assert setuptools["package-dir"] == FOLDERS
    found = set()
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((package, *path.parent.relative_to(ROOT / folder).parts)))
    assert found == {
        *("mapolicy", "mapolicy.bench", "mapolicy.models", "mapolicy.report"),
        *("mapolicy.cli", "mapolicy.recipes"),
    }
    assert sorted(setuptools["packages"]) == sorted(found)
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert tops == set(FOLDERS.values()), "a folder at the top that no package lists"


def test_data_files_are_packaged() -> None:
    data = project()["tool"]["setuptools"]["package-data"]
    assert data == {
        "mapolicy": ["py.typed", "bundle.schema.json", "dataset-level.schema.json", "report/templates/*"],
        "mapolicy.recipes": ["*.toml"],
    }
    assert (ROOT / "mapolicy" / "py.typed").is_file()
    for package, folder in FOLDERS.items():
        others = {path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".py"}
        others = {path for path in others if path.parent.name != "__pycache__"}
        packaged = {path for pattern in data.get(package, []) for path in (ROOT / folder).glob(pattern)}
        assert others == packaged, package


# What is used where it is installed, and by which module.
OPTIONAL = {
    **dict.fromkeys(("albumentations", "cv2", "kornia"), "bench.operations"),
    **dict.fromkeys(("starlette", "uvicorn"), "explore"),
}
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "tomli_w": "tomli-w"}


def test_what_is_imported_is_a_dependency() -> None:
    declared = {re.match(r"[\w.-]+", line)[0] for line in project()["project"]["dependencies"]}  # type: ignore[index]
    tops = {entry.what.split(".")[0] for entry in ALL_IMPORTS} - set(sys.stdlib_module_names) - {"mapolicy"}
    assert {DISTRIBUTIONS.get(top, top) for top in tops - set(OPTIONAL)} == declared


def test_optional_packages_are_imported_late() -> None:
    found = [entry for entry in ALL_IMPORTS if entry.what.split(".")[0] in OPTIONAL]
    assert {entry.what.split(".")[0] for entry in found} == set(OPTIONAL)
    for entry in found:
        assert entry.late or entry.typing, entry
        assert entry.module == f"mapolicy.{OPTIONAL[entry.what.split('.')[0]]}", entry


# ---- (c) what is imported when

HEAVY = ("torch", "timm", "torchvision", "sklearn", "matplotlib", "jinja2", "starlette", "uvicorn")


@pytest.mark.parametrize(
    "code",
    [
        "import mapolicy",
        "import mapolicy.cli",
        *(
            f"help({line!r})"
            for line in (
                *("", "search", "train", "compare", "inspect", "archs", "recipes", "datasets", "operations"),
                *("bench step", "push", "pull", "slim", "export", "import", "report", "explain", "explore"),
            )
        ),
    ],
)
def test_torch_comes_late(code: str) -> None:
    script = f"""
import sys
def help(command):
    from mapolicy.cli.entry import main
    sys.argv = ["mapolicy", *command.split(), "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, end.code
{code}
print([name for name in {HEAVY} if name in sys.modules], "mapolicy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] True"
    assert ("Usage: mapolicy" in done.stdout) == code.startswith("help")


# ---- (d) public names


def test_public_names_resolve() -> None:
    expected = {
        "Comparison", "Limits", "OPERATIONS", "PolicyAugment", "PolicyBundle", "PolicyNetwork", "SearchConfig",
        "TrainConfig", "TrainResult", "Transformation", "TransformationSampler", "apply_operation", "compare_policies",
        "hypergradient", "search_policy", "train_network",
    }  # fmt: skip
    assert set(mapolicy.__all__) == expected
    assert sorted(mapolicy.__all__) == mapolicy.__all__ == dir(mapolicy)
    for name in mapolicy.__all__:
        assert getattr(mapolicy, name) is not None
    with pytest.raises(AttributeError, match="module 'mapolicy' has no attribute 'nope'"):
        _ = mapolicy.nope


@pytest.mark.parametrize("name", mapolicy.__all__)
def test_a_public_name_is_the_same_thing_whatever_was_imported_before(name: str) -> None:
    home = importlib.import_module(f"mapolicy.{mapolicy._HOMES[name]}")
    assert getattr(mapolicy, name) is vars(home)[name]


def test_type_checkers_see_the_same_names() -> None:
    _, tree = MODULES["mapolicy.__init__"]
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "only `X as X` is an export"
            seen[alias.name] = node.module
    assert seen == mapolicy._HOMES
    assert sorted(seen) == mapolicy.__all__


# ---- (e) nothing runs what it reads

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}


def unsafe(module: str, tree: ast.Module) -> list[str]:
    found = [entry.what for entry in imports(module, tree, False, set()) if entry.what.split(".")[0] in UNPICKLERS]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"torch.{alias.name}" for alias in node.names if alias.name in ("load", "save")]
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EVALUATORS:
            found.append(node.func.id)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append("allow_pickle")
    return found


def test_nothing_is_unpickled_or_evaluated() -> None:
    assert {module: found for module, (_, tree) in MODULES.items() if (found := unsafe(module, tree))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import dill as d",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "f = torch.load",
        "eval(text)",
        "x = [exec(text)]",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_guard_sees_it(line: str) -> None:
    assert unsafe("m", ast.parse(line))


def test_the_guard_lets_methods_be() -> None:
    assert not unsafe("m", ast.parse("network.eval()\nre.compile('a')\nnp.load(p, allow_pickle=False)"))


# ---- (f) nothing speaks of where it was made

# An absolute path that is no part of an address or a pattern and not every system's; the number of a ticket.
FOREIGN = re.compile(
    r"(?<![\w.:/)\]}>\[<*~|-])/(?!(?:dev|etc|proc|sys|usr|bin)\b)[a-z]\w+|(?i:\b(?:issue|ticket|task) ?#?\d)"
)


def test_no_word_of_the_workshop() -> None:
    folders = [
        path for folder in ("mapolicy", "cli", "recipes", "docs", "examples") for path in (ROOT / folder).rglob("*")
    ]
    paths = [path for path in (*folders, ROOT / "README.md") if path.is_file() and path.suffix != ".png"]
    paths = [path for path in paths if path.parent.name != "__pycache__"]
    assert len(paths) > len(MODULES) + 17
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in paths
        if (match := FOREIGN.search(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert found == {}
    for text in ("see Issue 3", "(ticket #12)", "cd /home/me", '"/mnt/data/x"', "data_dir=/srv", "\n/media/disk"):
        assert FOREIGN.search(text), text
    for text in (
        "tissue 3",
        "an issue of 3",
        "../home",
        "net/work",
        "a / b",
        "/usr/bin",
        "https://host/home",
        "</b>",
    ):
        assert not FOREIGN.search(text), text
