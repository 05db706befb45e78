"""What is published: the package's description, its version, its long description, and the files beside the code."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import mapolicy

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPOSITORY = PROJECT["urls"]["Repository"]


@pytest.fixture(scope="module")
def setup_file() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_file", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_is_in_one_place(setup_file: ModuleType) -> None:
    assert mapolicy.__version__ == version("mapolicy")
    assert "version" not in PROJECT
    assert f"\nversion: {mapolicy.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {mapolicy.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_description_is_complete() -> None:
    assert PROJECT["authors"] == [{"name": "mapolicy developers"}]
    assert {"Repository", "Documentation", "Issues", "Changes"} <= set(PROJECT["urls"])
    assert PROJECT["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in PROJECT["classifiers"]
    for name in ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Dockerfile", "LICENSE"):
        assert (ROOT / name).is_file()


def test_links_of_the_long_description_are_absolute(setup_file: ModuleType) -> None:
    text = setup_file.long_description(README, REPOSITORY)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) == len(re.findall(r"\]\(([^)\s]+)\)", README)) > 15
    for target in targets:
        assert target.startswith("https://"), target
        if target.startswith(REPOSITORY):
            assert (ROOT / target.split("/main/")[1].partition("#")[0]).exists(), target
    (picture,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert picture.startswith(f"{REPOSITORY}/raw/main/docs/images/")


def test_an_index_shows_the_long_description(setup_file: ModuleType) -> None:
    markdown = pytest.importorskip("readme_renderer.markdown")
    if not markdown.variants:
        pytest.skip("needs readme-renderer[md]")
    shown = markdown.render(setup_file.long_description(README, REPOSITORY))
    assert shown is not None
    assert f'src="{REPOSITORY}/raw/main/docs/images/' in shown
    assert "<table>" in shown
    assert 'href="docs/' not in shown


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.mark.slow
def test_what_is_built_has_what_it_should(built: tuple[Path, Path]) -> None:
    pytest.importorskip("twine")
    wheel, source = built
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, source], check=True, timeout=60)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {"mapolicy/cli/main.py", "mapolicy/recipes/search-any.toml", "mapolicy/report/templates/report.html"} <= {
        *names
    }
    assert not [name for name in names if name.startswith(("tests/", "docs/", "cli/"))]
    assert f"Version: {mapolicy.__version__}\n" in metadata
    assert f"]({REPOSITORY}/raw/main/docs/images/" in metadata
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("docs/index.md", "docs/tutorials/own-photos.md", "examples/plain_loop.py", "benchmarks/RESULTS.md"):
        assert name in inside
    assert {"CHANGELOG.md", "CITATION.cff", "SECURITY.md", "Dockerfile", "tests/test_package.py"} <= inside


@pytest.mark.slow
def test_the_wheel_runs_without_the_repository(built: tuple[Path, Path], tmp_path: Path) -> None:
    """In an environment of its own, about 6 GB, with all that the wheel asks for and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=600)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", built[0]], check=True, timeout=3600)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [programs / "mapolicy", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=3600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert mapolicy.__version__ in run("--version")
    assert "learned" in run("demo", "--quiet")
    searched = json.loads(run("search", "digits", "--quiet", "--json", "--out", "digits.safetensors"))
    assert json.loads(run("inspect", "digits.safetensors", "--json"))["digest"] == searched["digest"]
    (place,) = (programs.parent / "lib").glob("python*/site-packages/mapolicy/__init__.py")
    assert place.is_file()
