"""The model card: what it says, and that nothing in a bundle can make it say or do something else."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import yaml
from PIL import Image

from mapolicy.bundle.dataset_level import DatasetPolicy
from mapolicy.bundle.format import parse_bundle
from mapolicy.bundle.load import SearchedFile
from mapolicy.bundle.model_card import CELL, card_pages, dataset_policy_card, heat_map, level_map, model_card, read_run
from mapolicy.errors import InputError
from mapolicy.transforms.space import OPERATION_NAMES
from tests.helpers.bundle_factory import draft, draft2, forge, forge2, raw, small_tensors, small_tensors2, verification

REPOSITORY = "birds/policy"


def card(changes=None, licence="", runs=()) -> tuple[dict, str]:
    manifest, tensors = parse_bundle(forge(changes), "x")
    text = model_card(manifest, tensors, REPOSITORY, licence, runs)
    empty, front, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def test_what_it_says() -> None:
    manifest, _ = parse_bundle(forge(), "x")
    front, body = card()
    assert front["license"] == "cc0-1.0"
    assert front["library_name"] == "mapolicy"
    assert front["mapolicy"] == {"digest": manifest.digest, "format": 1, "proxy": "test_resnet"}
    for part in (
        "# Augmentation policy for `digits`",
        f"`{manifest.digest}`",
        "24 training and 4 meta-validation images",
        "75.00 % top-1",
        f"mapolicy train --bundle hf://{REPOSITORY} --expect-digest {manifest.digest} --arch",
        f'PolicyBundle.load("hf://{REPOSITORY}", expect_digest="{manifest.digest}")',
        "**Not measured.**",
        "](p_jk.png)",
        'proxy = "test_resnet"',
    ):
        assert part in body


def test_the_likeliest_pair_is_named() -> None:
    values = np.ones((14, 14))
    values[2, 5] = 30
    manifest, tensors = parse_bundle(forge(sampler__probabilities=raw(values / values.sum())), "x")
    (line,) = (line for line in model_card(manifest, tensors, REPOSITORY).splitlines() if "**likeliest**" in line)
    assert line.startswith(f"- **likeliest**: Rotate, Color ({30 / values.sum():.3%}); ")


@pytest.mark.parametrize(
    ("stated", "given", "front"),
    [
        ("CC0-1.0", "mit", {"license": "cc0-1.0"}),
        ("", "MIT", {"license": "mit"}),
        ("", "", {}),
        ("Ask: me\n".strip(), "", {"license": "other", "license_name": "ask-me"}),
        ("**", "", {"license": "other", "license_name": "own"}),
    ],
)
def test_licence(stated: str, given: str, front: dict) -> None:
    found, body = card({"licence": stated}, given)
    assert {key: value for key, value in found.items() if key.startswith("license")} == front
    assert ("not stated" in body) == (front == {})


HOSTILE = [
    "</code><script>alert(1)</script>",
    "`</code>` **bold** [x](javascript:alert(1))",
    "````",
    "`",
    "--- \u00e9",
    "a | b | c",
    "![x](https://example.com/a.png)",
    "# heading",
    "www.example.com",
    "'\": [1, {",
]


def code_free(text: str) -> str:
    """The card without its code blocks and spans, found by CommonMark's rule: a span ends at as many backticks."""
    lines, fence = [], ""
    for line in text.split("\n"):
        opening = line[: len(line) - len(line.lstrip("`"))]
        if fence:
            if line == fence:
                fence = ""
        elif len(opening) >= 3 and "`" not in line[len(opening) :]:
            fence = opening
        else:
            lines.append(line)
    assert fence == "", "a block that does not end"
    free, position, text = "", 0, "\n".join(lines)
    while position < len(text):
        if text[position] != "`":
            free, position = free + text[position], position + 1
            continue
        run = len(text[position:]) - len(text[position:].lstrip("`"))
        end = position + run
        while True:
            end = text.index("`", end)
            length = len(text[end:]) - len(text[end:].lstrip("`"))
            if length == run:
                break
            end += length
        assert "\n" not in text[position:end], "a span over two lines"
        position = end + run
    return free


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_text(text: str) -> None:
    settings = {"proxy": "test_resnet", "epochs": 2, "optimizer": text}
    changes = {
        "licence": text, "note": f"{text}\n{text}", "dataset.classes": [text, "b", "c", "d"],
        "versions": {"python": text}, "search.settings": settings,
    }  # fmt: skip
    front, body = card(changes)
    plain_front, plain_body = card({"licence": "x", "note": "x", "versions": {"python": "x"}})
    assert code_free(body) == code_free(plain_body)
    assert set(front) == set(plain_front)
    assert front["mapolicy"].keys() == plain_front["mapolicy"].keys()


def test_what_the_user_must_name_is_in_the_command() -> None:
    for name, typed in (("folder:birds", "folder:PATH "), ("hfds/birds", "hfds/birds "), ("cifar10", "")):
        _, body = card({"dataset.name": name})
        assert f"mapolicy train {typed}--bundle hf://" in body


# Runs.


@pytest.fixture
def run(tmp_path: Path):
    def write(**changes) -> Path:
        result = {"arch": "resnet10t", "policy": "learned", "mode": "frozen", "test_top1": 98.25, "digest": "d" * 64}
        (tmp_path / "result.json").write_text(json.dumps(result | changes))
        (tmp_path / "config.toml").write_text(tomli_w.dumps({"epochs": 20, "seed": 3}))
        return tmp_path

    return write


def test_what_was_measured_is_shown(run) -> None:
    rows = [read_run(run(), "d" * 64), read_run(run(policy="uniform", test_top1=99.0), "d" * 64)]
    _, body = card(runs=rows)
    assert "Not measured" not in body
    assert "| `resnet10t` | `frozen` | 20 | 3 | 98.25 |\n| `resnet10t` | `uniform` | 20 | 3 | 99.00 |" in body
    assert "One seed" in body


def test_a_run_with_another_bundle_is_no_evidence(run) -> None:
    with pytest.raises(InputError, match="with the bundle dddddddddddd, not with eeeeeeeeeeee"):
        read_run(run(), "e" * 64)
    with pytest.raises(InputError, match="with the bundle None"):
        read_run(run(digest=None), "e" * 64)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", "[" * 9999, '{"digest": 1, "policy": 2}'])
def test_no_run(run, content: str) -> None:
    folder = run()
    (folder / "result.json").write_text(content)
    with pytest.raises(InputError, match="is not a finished training run"):
        read_run(folder, "d" * 64)


def test_a_dataset_policys_card() -> None:
    steps = [[{"operation": "Rotate", "probability": 0.5, "value": 30.0, "mirrored": True}], []]
    evil = "</code>` <script>"
    policy = DatasetPolicy.make(
        versions={"python": "3"}, source=evil, sub_policies=steps, lost=[evil], licence="", note=evil
    )
    text = dataset_policy_card(policy.manifest, REPOSITORY, "mit")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    assert yaml.safe_load(front)["mapolicy"]["kind"] == "dataset-level"
    assert "script" not in code_free(body)
    assert "Rotate 0.5 +-30" in body
    assert f"mapolicy train DATASET --bundle hf://{REPOSITORY} --expect-digest {policy.digest}" in body


def test_a_card_says_what_was_learned_and_checked() -> None:
    manifest, tensors = parse_bundle(forge2({"search.settings.weighting": "equal"}), "x")
    text = model_card(manifest, tensors, REPOSITORY)
    gained, learned = text.split("## What was gained")[1].split("## What it learned")
    assert "**The learned policy is 8.0 points above trivialaugment on 100 held-out images" in gained
    assert "| `none` | 70.0 | +10.0 (+2.9 to +17.1) |" in gained
    assert "| `learned, strength 30` | 80.0 | kept |" in gained
    assert "**Not measured.**" not in gained
    assert "- Rotate at -30 to -15 degrees harms (drawn less than 0.01 times as often as at random)." in learned
    assert "(levels.png)" in learned
    assert "This policy sees the transformation, not the image" in learned
    assert "A sample-aware" not in text
    pages = card_pages(SearchedFile(manifest, tensors), REPOSITORY, "", [])
    assert sorted(pages) == ["README.md", "levels.png", "p_jk.png"]
    assert sorted(card_pages(SearchedFile(*parse_bundle(forge(), "x")), REPOSITORY, "", [])) == [
        "README.md",
        "p_jk.png",
    ]


def test_the_picture_of_levels() -> None:
    manifest, tensors = parse_bundle(forge2(), "x")
    image = np.asarray(Image.open(io.BytesIO(level_map(manifest, tensors))).convert("RGB")).astype(int)
    rotate = OPERATION_NAMES.index("Rotate")
    margin = image.shape[0] - 32 - CELL * len(OPERATION_NAMES)

    def corner(row: int, column: int) -> np.ndarray:
        return image[margin + CELL * row + 2, margin + CELL * column + 2]

    assert corner(rotate, 0) == pytest.approx([33, 102, 172], abs=3), "hardly ever drawn"
    assert corner(rotate, 1)[0] > corner(rotate, 1)[2], "red: more than at random"


def test_an_underscore_in_a_policys_name_is_no_emphasis() -> None:
    rows = [("my_own_policy", None, 90, 2, 12), ("learned", 30.0, 80, 0, 0)]
    base = draft2(verification=verification(rows))
    text = model_card(*parse_bundle(forge(None, small_tensors2(), base), "x"), REPOSITORY)
    assert r"My\_own\_policy is 10.0 points above" in text
    assert "`my_own_policy`" in text


# The picture.


def picture(values) -> tuple[np.ndarray, int]:
    tensors = {**small_tensors(), "sampler.probabilities": raw(values / values.sum())}
    image = np.asarray(Image.open(io.BytesIO(heat_map(tensors, OPERATION_NAMES))).convert("RGB")).astype(int)
    return image, image.shape[1] - 8 - CELL * len(OPERATION_NAMES)


def test_red_is_above_uniform_and_blue_below() -> None:
    values = np.ones((14, 14))
    values[2, 5], values[7, 1] = 1.9, 0.1
    image, margin = picture(values)

    def corner(j: int, k: int) -> np.ndarray:
        return image[margin + CELL * j + 2, margin + CELL * k + 2]

    assert corner(2, 5).tolist() == [178, 24, 43]
    assert corner(7, 1)[2] > corner(7, 1)[0] + 50
    assert corner(0, 0).min() >= 250
    assert corner(5, 2).min() >= 250, "rows are the first operation"


def test_a_uniform_policy_is_white_and_the_picture_repeats() -> None:
    image, margin = picture(np.ones((14, 14)))
    assert image[margin + 2, margin + 2].min() >= 254
    manifest = draft()
    assert heat_map(small_tensors(), manifest.operations.names) == heat_map(small_tensors(), OPERATION_NAMES)
