"""Every number that a search, a training, a comparison and an evaluation print is in the glossary."""

import re
from pathlib import Path

from mapolicy.cli.display import LABELS
from mapolicy.cli.run_progress import SHOWN

from tests.helpers.command_line import SHORT, TRAIN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "glossary.md"
# Labels whose values are no numbers, or are words that their value explains.
WORDS = {
    *("bundle", "bundles", "bundle's digest", "run folder", "network", "policy", "settings", "hardware", "versions"),
    *("next", "whether it helps", "whether it helped", "to use it", "data set", "input", "extractor", "budget"),
    *("operation space", "licence", "note", "images"),
}
LINE = re.compile(r"^ *([a-z±][^ ]*(?: [^ ]+)*)  +\S")


def named_in_the_glossary() -> set[str]:
    rows = re.findall(r"^\| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"`|\(.*?\)", "", name).strip() for row in rows for name in row.split(", ")}


def test_every_printed_number_is_in_the_glossary(mapolicy, tmp_path: Path) -> None:
    bundle, chosen = "artifacts/digits.safetensors", ("--set", "sampler=alignment", "--set", "weighting=policy")
    printed = ""
    for command in (
        ("search", "digits", "--proxy", "wrn10_1", *SHORT, *chosen),
        ("train", "--bundle", bundle, *TRAIN, "--run-dir", "run"),
        ("evaluate", "run", "digits"),
        ("compare", "--bundle", bundle, *TRAIN, "--seeds", "1", "--against", "uniform"),
        ("inspect", bundle),
    ):
        outcome = mapolicy(*command)
        assert outcome.code == 0, outcome.err
        printed += outcome.out
    labels = {found[1].partition(" = ")[0] for line in printed.splitlines() if (found := LINE.match(line))}
    assert {"test top-1", "entropy of p_jk", "calibration error", "furthest from uniform", "±"} <= labels
    running = {LABELS.get(name, name).partition(", ")[0] for name in SHOWN}
    assert sorted((labels | running) - WORDS - named_in_the_glossary()) == []
