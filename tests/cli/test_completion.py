"""Completion as a shell asks for it: words typed so far in, one candidate a line out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mapolicy.cli import completion

HEAVY = ("torch", "timm", "torchvision")


def completed(words: str) -> list[str]:
    """What bash would be offered for the last word."""
    asked = {"_MAPOLICY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    script = Path(sys.executable).with_name("mapolicy")
    done = subprocess.run([script], env=os.environ | asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ("mapolicy sea", ["search"]),
        ("mapolicy search cifar", ["cifar10", "cifar100"]),
        ("mapolicy search fol", ["folder:"]),
        ("mapolicy search digits --rec", ["--recipe"]),
        ("mapolicy search --recipe search-dig", ["search-digits"]),
        ("mapolicy train --policy tri", ["trivialaugment"]),
        ("mapolicy compare --set batch_s", ["batch_size="]),
    ],
)
def test_a_shell_completes_names(words: str, candidates: list[str]) -> None:
    found = completed(words)
    assert found[: len(candidates)] == candidates
    assert len(found) == len(candidates) or "recipe" in words


def test_completion_imports_no_torch() -> None:
    script = (
        "import sys\nfrom mapolicy.cli import completion\n"
        "print([len(list(f(''))) > 1 for f in (completion.datasets, completion.policies, completion.recipes)],"
        f"[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[True, True, True] []\n"


def test_every_setting_is_offered() -> None:
    names = [name for name, _ in completion.settings("")]
    assert {"epochs=", "proxy=", "arch="} <= set(names)
    assert len(names) == len(set(names)) > 50


def test_the_script_for_a_shell_is_shown(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_, **__: ("bash", "/bin/bash"))
    outcome = mapolicy("--show-completion")
    assert outcome.code == 0, outcome.err
    assert "_MAPOLICY_COMPLETE=complete_bash" in outcome.out
