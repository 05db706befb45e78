"""The examples run as their first lines say, learn, and need few lines for the policy."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mapolicy import search_policy

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
OWN = ("plain_loop", "torchvision_reference", "timm_loop")
INTEGRATED = ("timm_loop", "accelerate_loop", "lightning_module", "hugging_face_trainer")
FOREIGN = {"accelerate_loop": "accelerate", "lightning_module": "lightning", "hugging_face_trainer": "transformers"}


@pytest.fixture(scope="module")
def bundle_file(make_search_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all digits, which the examples train on."""
    path = tmp_path_factory.mktemp("bundle") / "digits.safetensors"
    search_policy(make_search_config(train_per_class=0, batch_size=256, epochs=1)).save(path)
    return path


def accuracy(output: str) -> float:
    (found,) = re.findall(r"^top-1 ([\d.]+) %$", output, re.MULTILINE)
    return float(found)


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"digits", *OWN, *FOREIGN}


@pytest.mark.parametrize("name", [*OWN, *FOREIGN])
def test_few_lines_are_the_policys(name: str) -> None:
    _, head, code = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split('"""', 2)
    assert f"python examples/{name}.py" in head
    lines = [line for line in code.splitlines() if not line.lstrip().startswith("#")]
    marked = [line for line in lines if "  # policy" in line]
    assert len(marked) == 3 if name in INTEGRATED else 3 < len(marked) < 10
    mentioned = [
        line
        for line in lines
        if re.search(r"PolicyAugment|from mapolicy|\bpolicy(\.\w|\()|Policy(Callback|Mixup)\(", line)
    ]
    normalised = [line for line in mentioned if "in place of a normalisation" in line]
    assert set(mentioned) - set(marked) == set(normalised)


@pytest.mark.parametrize("name", OWN)
def test_example(
    name: str, bundle_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [name, str(bundle_file)])
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    sys.modules.pop("digits")
    assert accuracy(capsys.readouterr().out) > 80


@pytest.mark.parametrize("name", FOREIGN)
def test_example_in_a_foreign_trainer(name: str, bundle_file: Path, tmp_path: Path) -> None:
    """In a process of its own: these trainers set up logging, seeds and warnings for the whole process."""
    pytest.importorskip(FOREIGN[name], reason="the extra integrations")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(bundle_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert accuracy(done.stdout) > 80
    assert list(tmp_path.iterdir()) == []
