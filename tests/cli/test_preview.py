"""`mapolicy preview`: the file, and what is refused."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.command_line import save_greys, snapshot


def test_a_picture_of_ones_own_images(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "my greys" / "set", size=(20, 14))
    command = ("preview", "folder:my greys/set", "--images", "2", "--draws", "3")
    outcome = mapolicy(*command, "--policy", "randaugment", "--out", "a.png")
    assert outcome.code == 0, outcome.err
    assert "picture  a.png" in outcome.out
    with Image.open(tmp_path / "a.png") as picture:
        size = picture.size
        assert picture.format == "PNG"
    assert f"{size[0]} x {size[1]} pixels" in outcome.out
    mapolicy(*command, "--out", "a.png").is_error(2, "a.png: exists", "--force")
    document = mapolicy(*command, "--out", "b.png", "--json", "--seed", "3", "--set", "operation_space=wide").json
    assert (document["picture"], document["policy"], document["width"]) == ("b.png", "uniform", size[0])
    again = mapolicy(*command, "--out", "c.png", "--seed", "3", "--set", "operation_space=wide")
    assert again.code == 0
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_damaged_images_are_left_out_and_named(mapolicy, tmp_path: Path) -> None:
    save_greys(tmp_path / "greys", size=(20, 14))
    for path in sorted((tmp_path / "greys" / "dark").iterdir())[1:]:
        path.write_bytes(b"")
    command = ("preview", "folder:greys", "--images", "4", "--draws", "2", "--force")
    said = r"mapolicy: left out \d+ images? that cannot be decoded: dark/\d\d.png: is empty"
    plain, asked = mapolicy(*command), mapolicy(*command, "--skip-corrupt")
    assert (plain.code, asked.code) == (0, 0), plain.err
    assert re.match(said, plain.err)
    assert plain.err.endswith("; a run stops at such an image without --skip-corrupt\n")
    assert asked.err == plain.err.replace("; a run stops at such an image without --skip-corrupt", "")
    (tmp_path / "high").mkdir()
    (tmp_path / "greys").rename(tmp_path / "high" / "greys")
    save_greys(tmp_path / "high" / "others")
    refused = mapolicy("preview", "folder:high", "--force")
    refused.is_error(3, "--nested-classes")
    assert mapolicy("preview", "folder:high", "--nested-classes", "--force").code == 0


def test_a_bundle_brings_policy_data_and_size(mapolicy, bundle_file: Path) -> None:
    outcome = mapolicy("preview", "--bundle", bundle_file, "--images", "1", "--draws", "2", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["policy"] == "learned"
    assert len(outcome.json["digest"]) == 64
    assert mapolicy("import", "randaugment:2,9", "--out", "listed.safetensors").code == 0
    listed = ("preview", "digits", "--bundle", "listed.safetensors", "--images", "1", "--draws", "2", "--out", "d.png")
    assert mapolicy(*listed).code == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("DATASET",)),
        (("digits", "--out", "a.jpg"), (".png",)),
        (("digits", "--policy", "learned"), ("--bundle",)),
        (("digits", "--policy", "best"), ("best",)),
        (("digits", "--images", "0"), ("--images",)),
        (("digits", "--images", "100", "--draws", "100"), ("fewer",)),
        (("digit",), ("digits",)),
    ],
)
def test_what_cannot_be_meant_is_refused(mapolicy, tmp_path: Path, arguments: tuple, parts: tuple) -> None:
    mapolicy("preview", *arguments).is_error(2, *parts)
    assert snapshot(tmp_path) == []
