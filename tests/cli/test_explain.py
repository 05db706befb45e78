"""`mapolicy explain`: weights of an image's transformations."""

import re
from pathlib import Path

import pytest
from mapolicy.cli import options
from PIL import Image

from mapolicy import PolicyBundle
from tests.helpers.command_line import snapshot
from tests.helpers.make_bundles import DATA


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "cat.jpg"
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(path)
    return path


def test_explain_ranks_transformations_of_an_image(mapolicy, bundle_file: Path, photo: Path, tmp_path: Path) -> None:
    chosen = ("--transformations", "Rotate:5,Color:-3;Solarize:9;Equalize")
    shown = mapolicy("explain", bundle_file, photo, *chosen, "--out", "cat.png")
    assert shown.code == 0, shown.err
    lines = [
        re.match(r" +(\d) +(\d\.\d{3})  (\w+(?::-?[\d.]+)?, \w+(?::-?[\d.]+)?)", line) for line in shown.out.split("\n")
    ]
    found = [match.groups() for match in lines if match]
    assert [rank for rank, _, _ in found] == ["1", "2", "3"]
    assert sum(float(weight) for _, weight, _ in found) == pytest.approx(3, abs=2e-3)
    assert {text for _, _, text in found} == {"Rotate:5.0, Color:-3.0", "Solarize:9.0, Identity", "Equalize, Identity"}
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.width > picture.height

    document = mapolicy("explain", bundle_file, photo, photo, *chosen, "--json").json
    assert document["digest"] == PolicyBundle.load(bundle_file).digest
    assert len(document["images"]) == 2
    rows = document["images"][0]["transformations"]
    assert [f"{row['weight']:.3f}" for row in rows] == [weight for _, weight, _ in found]


def test_explain_draws_from_p_jk(mapolicy, bundle_file: Path, photo: Path) -> None:
    drawn = [
        mapolicy("explain", bundle_file, photo, "--samples", "5", "--seed", seed, "--json").json for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]["images"][0]["transformations"]) == 5


def test_a_narrow_terminal_loses_the_bars_alone(
    mapolicy, bundle_file: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, bars in (("80", True), ("40", False)):
        monkeypatch.setenv("COLUMNS", width)
        shown = mapolicy("explain", bundle_file, photo, "--transformations", "Rotate:5,Color:-3;Equalize")
        assert "Rotate:5.0, Color:-3.0" in shown.out
        assert ("█" in shown.out) == bars
        assert max(map(len, shown.out.splitlines())) <= int(width)


def test_explain_refuses_what_it_cannot_show(
    mapolicy, bundle_file: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no.png").write_text("no image")
    mapolicy("explain", bundle_file, photo, "no.png", "--out", "x.png").is_error(3, "no.png: is not an image")
    with monkeypatch.context() as patch:  # found out before torch is loaded
        patch.setattr(options, "open_bundle", lambda *_: pytest.fail("the bundle was opened first"))
        mapolicy("explain", bundle_file, photo, "nowhere.png").is_error(3, "nowhere.png: No such file")
        mapolicy("explain", bundle_file, tmp_path).is_error(3, "is a folder")
        Path("empty.png").touch()
        mapolicy("explain", bundle_file, "empty.png").is_error(3, "empty.png: is empty")
        Path("empty.png").unlink()
    mapolicy("explain", bundle_file, photo, "--transformations", "Spin:3").is_error(2, "no operation 'Spin'")
    mapolicy("explain", bundle_file, photo, "--out", "x.txt").is_error(2, "does not end in .png or .svg")
    mapolicy("explain", bundle_file, photo, "--samples", 3, "--transformations", "Rotate:1").is_error(2, "leave one")
    mapolicy("import", "randaugment:1,5", "--out", "r.safetensors")
    mapolicy("explain", "r.safetensors", photo).is_error(3, "dataset-level policy: all samples weigh the same")
    assert snapshot(tmp_path) == ["no.png", "r.safetensors"]


def test_explain_of_equal_weights_says_how_often_each_is_drawn(mapolicy, photo: Path, tmp_path: Path) -> None:
    path = DATA / "format-2-levels.safetensors"
    chosen = ("--transformations", "Rotate:5,Color:-3;Solarize:9;Equalize")
    shown = mapolicy("explain", path, photo, *chosen, "--out", "cat.png")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("this policy sees the transformation, not the image")
    assert re.search(r"^rank +frequency +transformation", shown.out, re.M)
    rows = mapolicy("explain", path, photo, *chosen, "--json").json["images"][0]["transformations"]
    assert all(row["frequency"] > 0 and "weight" not in row for row in rows)
