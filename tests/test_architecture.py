"""The house stands: imports go downwards, packages are listed, torch comes late, nothing unpickles or evaluates."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib

import pytest

import mapolicy
from tests.helpers.imports import (
    ALL_IMPORTS,
    FOLDERS,
    MODULES,
    OWN_IMPORTS,
    ROOT,
    Import,
    arrows,
    floors,
    imports,
    room,
)

# The rooms from the lowest to the highest: a room imports from the ones before it.
ROOMS = [
    *("errors", "runtime", "transforms", "distributed", "registries", "config"),
    *("models", "data", "bundle", "policy", "inference", "bilevel"),
    *("report", "training", "integrations", "search", "train", "compare", "bench", "augment"),
    *("__init__", "recipes", "cli", "__main__"),
]
PACKAGES = [
    *("runtime", "transforms", "config", "models", "data", "bundle", "policy", "inference", "bilevel", "training"),
    *("compare", "report", "bench", "integrations"),
]


def upward(entries: list[Import]) -> list[str]:
    return [
        f"{entry.module} imports {entry.what}"
        for entry in entries
        if ROOMS.index(room(entry.what)) > ROOMS.index(room(entry.module))
    ]


# ---- (a) who imports whom


def test_every_file_is_read() -> None:
    files = [path for folder in ("mapolicy", "cli", "recipes") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 130
    assert sorted(files) == sorted(path for path, _ in MODULES.values())
    assert len(OWN_IMPORTS) > 600
    for entry in OWN_IMPORTS:
        assert entry.what in MODULES, entry


def test_every_room_is_known() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))
    below = {path.parent.name for path in (ROOT / "mapolicy").glob("*/__init__.py")}
    assert below == set(PACKAGES)


def test_imports_go_downwards() -> None:
    assert upward(OWN_IMPORTS) == []


def test_no_files_import_each_other() -> None:
    """Not through others either, nor inside functions, nor for type checkers alone."""
    graph: dict[str, set[str]] = {}
    for entry in OWN_IMPORTS:
        graph.setdefault(entry.module, set()).add(entry.what)
    assert len(graph) > 120
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_house_stays_low() -> None:
    """89 flat modules had 17 floors and 292 arrows; `python -m tests.helpers.imports` draws what there is."""
    assert max(floors().values()) < 13
    assert len(arrows()) < 156


@pytest.mark.parametrize(
    ("module", "line", "seen"),
    [
        ("mapolicy.errors", "from .search import search_policy", "mapolicy.search"),
        ("mapolicy.errors", "from . import search", "mapolicy.search"),
        ("mapolicy.errors", "import mapolicy.search", "mapolicy.search"),
        ("mapolicy.errors", "from mapolicy import search_policy", "mapolicy"),
        ("mapolicy.models.wide_resnet", "from ..policy.network import PolicyNetwork", "mapolicy.policy.network"),
        ("mapolicy.models.wide_resnet", "def f():\n    from ..cli import main", "mapolicy.cli.main"),
        ("mapolicy.bundle.format", "if TYPE_CHECKING:\n    from ..policy import network", "mapolicy.policy.network"),
        ("mapolicy.config", "from . import recipes", "mapolicy.recipes"),
        ("mapolicy.search", "def f():\n    from .train import train_network\n    import mapolicy.cli", "mapolicy.cli"),
    ],
)
def test_the_guard_sees_an_upward_import(module: str, line: str, seen: str) -> None:
    entries = list(imports(module, ast.parse(line), False, MODULES))
    assert seen in [entry.what for entry in entries]
    assert f"{module} imports {seen}" in upward(entries)


def test_a_policy_file_is_checked_without_torch_and_without_a_network() -> None:
    for entry in ALL_IMPORTS:
        if room(entry.module) == "bundle":
            assert entry.what.split(".")[0] not in ("torch", "timm", "torchvision"), entry
            if entry.module.rpartition(".")[2] not in ("hub", "download", "model_card"):
                assert entry.what.split(".")[0] not in ("huggingface_hub", "urllib", "http", "socket", "ssl"), entry


def is_library(module: str) -> bool:
    return not module.startswith(("mapolicy.cli", "mapolicy.recipes"))


def test_only_main_knows_the_command_line() -> None:
    of_cli = {entry.module for entry in OWN_IMPORTS if room(entry.what) == "cli"}
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
    assert found == {*FOLDERS, *(f"mapolicy.{package}" for package in PACKAGES)}
    assert sorted(setuptools["packages"]) == sorted(found)
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert tops == {*FOLDERS.values(), "tests"}, "a folder at the top that no package lists"


def test_data_files_are_packaged() -> None:
    data = project()["tool"]["setuptools"]["package-data"]
    assert data == {
        "mapolicy": ["py.typed", "bundle/*.schema.json", "report/templates/*"],
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
    **dict.fromkeys(("albumentations", "cv2", "kornia"), "bench.other_libraries"),
    **dict.fromkeys(("starlette", "uvicorn"), "report.explore_server"),
    **dict.fromkeys(("onnx", "onnxruntime"), "inference.export_network"),
    "IPython": "cli.run_progress",
    "accelerate": "integrations.accelerate",
}
# What a module derives classes from; nothing of ours imports that module.
TRAINERS = {"lightning": "integrations.lightning", "transformers": "integrations.transformers"}
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "tomli_w": "tomli-w"}


def test_what_is_imported_is_a_dependency() -> None:
    declared = {re.match(r"[\w.-]+", line)[0] for line in project()["project"]["dependencies"]}  # type: ignore[index]
    tops = {entry.what.split(".")[0] for entry in ALL_IMPORTS} - set(sys.stdlib_module_names) - {"mapolicy"}
    assert {DISTRIBUTIONS.get(top, top) for top in tops - set(OPTIONAL) - set(TRAINERS)} == declared


def test_optional_packages_are_imported_late() -> None:
    found = [entry for entry in ALL_IMPORTS if entry.what.split(".")[0] in OPTIONAL]
    assert {entry.what.split(".")[0] for entry in found} == set(OPTIONAL)
    for entry in found:
        assert entry.late or entry.typing, entry
        assert entry.module == f"mapolicy.{OPTIONAL[entry.what.split('.')[0]]}", entry
    for package, home in TRAINERS.items():
        users = {entry.module for entry in ALL_IMPORTS if entry.what.split(".")[0] == package}
        assert users == {f"mapolicy.{home}"}
        assert [entry for entry in OWN_IMPORTS if entry.what == f"mapolicy.{home}"] == []


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
                *("settings", "doctor", "preview", "predict", "evaluate", "export-network"),
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


def test_a_local_file_loads_no_network_code() -> None:
    file = ROOT / "tests" / "bundle" / "kept" / "format-1-scalar.safetensors"
    script = f"""
import sys
from mapolicy.cli.entry import main
sys.argv = ["mapolicy", "inspect", {str(file)!r}]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
network = ("mapolicy.bundle.hub", "mapolicy.bundle.download", "huggingface_hub", "urllib.request", "http.client")
print([name for name in network if name in sys.modules], "mapolicy.bundle.fetch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] True"


# ---- (d) public names


def test_public_names_resolve() -> None:
    expected = {
        "Comparison", "Limits", "OPERATIONS", "PolicyAugment", "PolicyBundle", "PolicyNetwork", "Reporter",
        "SearchConfig", "TrainConfig", "TrainResult", "Transformation", "TransformationSampler", "apply_operation",
        "compare_policies", "hypergradient", "load_network", "preview", "search_policy", "train_network",
        "TrainedNetwork",
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
    _, tree = MODULES["mapolicy"]
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
