"""What a typed command gives back, and options that keep a run short."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.helpers.settings import FEW

SHORT = ("--epochs", "1", *(f"--set={name}={value}" for name, value in FEW.items()))  # of the digits
# What a launcher sets for the first of two processes.
LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
TRAIN = ("--arch", "test_resnet", *SHORT)


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)

    def is_error(self, code: int, *parts: str) -> None:
        """One line on stderr of printable ASCII, at most 240 characters, and nothing on stdout."""
        assert self.code == code, self.err
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert re.fullmatch(r"mapolicy: error: [ -~]+: [ -~]+", lines[0]), lines[0]
        assert len(lines[0]) <= 240
        for part in parts:
            assert part in lines[0]


def save_greys(folder: Path, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> None:
    """A data set of two classes with twenty images each."""
    for label, grey in (("dark", 40), ("light", 200)):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            colour = (grey + number, grey, grey) if mode == "RGB" else grey + number
            Image.new(mode, size, colour).save(folder / label / f"{number:02}.png")


def snapshot(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def run_process(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    script = Path(sys.executable).with_name("mapolicy")
    return subprocess.run(
        [script, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
