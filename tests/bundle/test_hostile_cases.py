"""Bad inputs that are no bundle, and that the tables of bad inputs have every kind.

python tests/test_hostile_cases.py        # lists every case: its message and how long it took
"""

import io
import os
import pickle
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mapolicy.bundle.format import read_bundle
from mapolicy.bundle.load import open_bundle
from mapolicy.errors import InputError, MapolicyError, UsageError
from mapolicy.models.factory import check_arch
from mapolicy.policy.policy_bundle import PolicyBundle
from mapolicy.training.checkpoint import load_checkpoint
from tests.bundle import test_dataset_level as test_published
from tests.bundle import test_hostile as test_bundle_hostile
from tests.helpers.bundle_factory import Payload
from tests.policy import test_policy_bundle as test_bundle

KINDS = {f"A{number:02}" for number in (*range(1, 30), 36, 37)}


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.with_name("ran"))))
    load_checkpoint(path)


def torch_saved(path: Path) -> None:
    content = io.BytesIO()
    torch.save({"x": torch.ones(2)}, content)
    path.write_bytes(content.getvalue())
    load_checkpoint(path)


# id: (what is done, the error, what it must say)
OTHERS: dict[str, tuple[Callable[[Path], None], type[MapolicyError], str]] = {
    "A28 arch unknown": (
        lambda _: check_arch("resnet19"),
        UsageError,
        "resnet19' is not in timm's registry; the closest",
    ),
    "A28 arch with a scheme": (
        lambda _: check_arch("hf-hub:timm/resnet18.a1_in1k"),
        UsageError,
        "not in timm's registry",
    ),
    "A28 arch with a scheme in capitals": (lambda _: check_arch("HF-HUB:timm/x"), UsageError, "not in timm's registry"),
    "A28 arch a folder": (lambda _: check_arch("local-dir:/etc"), UsageError, "not in timm's registry"),
    "A28 arch of 1 MB": (lambda _: check_arch("a" * 2**20), UsageError, "not in timm's registry"),
    "A36 checkpoint a pickle": (pickled, InputError, "no whole checkpoint"),
    "A36 checkpoint torch's": (torch_saved, InputError, "no whole checkpoint"),
}


def test_every_kind_is_in_a_table() -> None:
    tables = (test_bundle_hostile.HOSTILE, test_bundle.HOSTILE, test_published.HOSTILE, OTHERS)
    found = [case[:3] for table in tables for case in table]
    assert set(found) >= KINDS
    assert len(found) > 250


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    act, error, says = OTHERS[case]
    with pytest.raises(error) as problem:
        act(tmp_path / "x")
    assert says in str(problem.value)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "ran").exists()
    if case == "A28 arch unknown":
        assert re.search(r"the closest are (\w+, ){2}\w+$", str(problem.value)), "three suggestions"


def listing() -> None:
    """Id, seconds of processor time and message of every case, sorted."""
    bundle, rows = test_bundle.make_bundle(), []

    def run(case: str, act: Callable[[Path], object], prepare: Callable[[Path], object] = lambda path: None) -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            prepare(folder / "x")
            start = time.process_time()
            try:
                act(folder / "x")
                message = "ACCEPTED"
            except MapolicyError as problem:
                message = str(problem).replace(str(folder), "")
            rows.append((case, time.process_time() - start, message))
        finally:
            shutil.rmtree(folder)

    def make_file(content: object) -> Callable[[Path], object]:
        def prepare(path: Path) -> None:
            made = content(path) if callable(content) else content
            if made is not None:
                path.write_bytes(made)

        return prepare

    for case, (content, _) in test_bundle_hostile.HOSTILE.items():
        run(case, read_bundle, make_file(content))
    for case in test_bundle.HOSTILE:
        run(case, PolicyBundle.load, make_file(test_bundle.hostile_file(case, bundle)))
    for case, (changes, _) in test_published.HOSTILE.items():
        run(f"{case} (dataset-level)", open_bundle, make_file(test_published.forged(changes)))
    for case, (act, _, _) in OTHERS.items():
        run(case, act)
    for case, seconds, message in sorted(rows):
        sys.stdout.write(f"{case:<52} {seconds:7.3f} s  {message}{os.linesep}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    listing()
