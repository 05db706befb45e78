"""`mapolicy doctor`: what it finds here, and what it says of a machine that lacks something."""

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from mapolicy.cli import doctor

from mapolicy.errors import EnvironmentFault

Usage = namedtuple("Usage", "total used free")


def lines_of(text: str) -> dict[str, tuple[str, str]]:
    """State and text of each finding."""
    found = re.findall(r"^(ok|missing|broken) +(.+?)  +(.+)$", text, re.MULTILINE)
    return {what: (state, rest) for state, what, rest in found}


def test_a_machine_that_runs_the_tests_is_well(mapolicy, tmp_path: Path) -> None:
    outcome = mapolicy("doctor")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Search, train and compare have what they need.")
    found = lines_of(outcome.out)
    assert {"mapolicy", "packages", "CPU", "GPU", "numba cache", "disk", "huggingface cache"} <= set(found)
    assert "torch " in found["packages"][1]
    assert "mapolicy export-network --to onnx" in outcome.out
    assert list(tmp_path.iterdir()) == []
    document = mapolicy("doctor", "--json").json
    assert document["ok"] is True
    assert [each["what"] for each in document["findings"]] == list(found)


@pytest.mark.parametrize(
    ("line", "text"),
    [("nonesuch>=1", "nonesuch: is not installed; pip install 'nonesuch>=1'"), ("torch>=99", "is older than 99")],
)
def test_a_package_that_every_run_needs_is_an_error(
    mapolicy, monkeypatch: pytest.MonkeyPatch, line: str, text: str
) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: [line, "pillow>=1", 'nothing>=1; extra == "test"'])
    outcome = mapolicy("doctor")
    assert outcome.code == 5
    assert text in outcome.err
    assert "have what they need" not in outcome.out
    assert lines_of(outcome.out)["packages"][1].startswith("pillow ")
    assert mapolicy("doctor", "--json").json["ok"] is False


def test_a_full_disk_is_an_error_and_a_folder_without_rights_is_named(mapolicy, monkeypatch) -> None:
    def refuse(path: Path) -> None:
        raise EnvironmentFault(str(path), "Permission denied")

    monkeypatch.setattr(doctor, "check_writable", refuse)
    assert lines_of(mapolicy("doctor").out)["this folder"][0] == "missing"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40, 2**20))
    outcome = mapolicy("doctor")
    assert outcome.code == 5
    assert "disk: 0.0 GiB free" in outcome.err


def test_what_is_missing_says_for_which_command(mapolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    outcome = mapolicy("doctor")
    assert outcome.code == 0
    found = lines_of(outcome.out)
    assert found["C++ compiler"][0] == "missing"
    assert "needed by mapolicy explore; pip install 'mapolicy[explore]'" in found["starlette and uvicorn"][1]
    assert "wandb" in outcome.out.splitlines()[0]


def test_a_container_with_less_than_its_cores(mapolicy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    monkeypatch.setattr(doctor, "CGROUP_CPU", quota)
    assert "may use 0.5" in lines_of(mapolicy("doctor").out)["CPU"][1]
    quota.write_text("max 100000\n")
    assert "may use" not in mapolicy("doctor").out
