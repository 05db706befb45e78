"""The notebooks of examples/notebooks run in a real Jupyter kernel, as they are, and what they show can be read."""

import ast
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "examples" / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
ESCAPE = r"\u001b"  # as JSON spells it


def test_both_are_there() -> None:
    assert NAMES == ["first_steps", "own_photos"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_are_stripped_and_links_lead_somewhere(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (path.parent / target).exists(), target


def executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Any]]]:
    """Source and outputs of each cell with code, after a run in a kernel of this Python."""
    nbformat = pytest.importorskip("nbformat", reason="the extra notebooks")
    nbclient = pytest.importorskip("nbclient", reason="the extra notebooks")
    pytest.importorskip("ipykernel", reason="the extra notebooks")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [(cell.source, cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]


def words(outputs: list[Any]) -> str:
    """All text of a cell's outputs."""
    return "".join(each.get("text", "") + each.get("data", {}).get("text/plain", "") for each in outputs)


def check_progress(outputs: list[Any], what: str) -> None:
    """One output, replaced while the run went on: rich's HTML, and text without what moves a cursor."""
    shown = [each.data for each in outputs if "text/html" in each.get("data", {})]
    assert len(shown) == 1
    for form in ("text/html", "text/plain"):
        text = re.sub(r"<[^>]+>", "", shown[0][form])
        steps = re.search(rf"{what} .* (\d+)/(\d+)", text)
        assert steps is not None
        assert steps[1] == steps[2]
        assert "loss" in text
        assert len(text.splitlines()) < 40
    assert shown[0]["text/html"].startswith("<pre style=")


@pytest.mark.filterwarnings("ignore")  # of the client
def test_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = executed(NOTEBOOKS[0], tmp_path, monkeypatch)
    assert ESCAPE not in json.dumps([outputs for _, outputs in cells])
    pictures = [source for source, outputs in cells if any("image/png" in each.get("data", {}) for each in outputs)]
    assert [source.splitlines()[-1].split("(")[0] for source in pictures] == ["mapolicy.preview"] * 2 + ["Image"]
    (search,) = (outputs for source, outputs in cells if "search_policy" in source)
    check_progress(search, "search wrn10_1")
    (training,) = (outputs for source, outputs in cells if "train_network" in source)
    check_progress(training, "train wrn16_1")
    found = re.search(r"with the policy ([\d.]+) %, without augmentation ([\d.]+) %", words(training))
    assert found is not None
    assert min(map(float, found.groups())) > 60
    assert (tmp_path / "digits.safetensors").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow  # `first_steps` shows in every run that notebooks work
def test_own_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = executed(NOTEBOOKS[1], tmp_path, monkeypatch)
    assert ESCAPE not in json.dumps([outputs for _, outputs in cells])
    (command,) = (words(outputs) for source, outputs in cells if "!mapolicy search" in source)
    lines = command.splitlines()
    assert sum(line.startswith("mapolicy: epoch ") for line in lines) == 10
    assert len(lines) < 60
    (training,) = (outputs for source, outputs in cells if "train_network(" in source)
    check_progress(training, "train wrn10_1")
    assert float(re.search(r"([\d.]+) % of the test images", words(training))[1]) > 60
    probabilities = ast.literal_eval(words(cells[-1][1]))
    assert set(probabilities) == {"zero", "three", "seven"}
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
