"""`mapolicy archs`, `recipes`, `datasets`, `operations`, `policies`."""

import pytest

from mapolicy.policy import pba
from mapolicy.registries import SAMPLERS, ZERO_COST_POLICIES

LISTS = {
    "archs": ("shakeshake26_2x96d", "shake-shake"),
    "recipes": ("search-cifar100-wrn28_10", "CIFAR-100"),
    "datasets": ("folder:PATH", "class"),
    "operations": ("Rotate", "degrees"),
    "policies": ("pba-cifar10", "Population"),
}


@pytest.mark.parametrize("what", LISTS)
def test_lists(mapolicy, what: str) -> None:
    name, word = LISTS[what]
    rows = mapolicy(what, "--json").json["rows"]
    found = mapolicy(what, word, "--json").json["rows"]
    assert name in {row["name"] for row in found}
    assert found == [row for row in rows if word.lower() in f"{row['name']} {row['description']}".lower()]
    assert 0 < len(found) < len(rows) == len({row["name"] for row in rows})
    lines = mapolicy(what, word.upper()).out.splitlines()
    assert [line.split()[0] for line in lines] == [row["name"] for row in found]
    for line, row in zip(lines, found, strict=True):
        assert line.endswith(f"  {row['description']}")


def test_what_the_lists_say(mapolicy) -> None:
    assert len(mapolicy("operations", "--json").json["rows"]) == 14
    (rotate,) = mapolicy("operations", "rotate", "--json").json["rows"]
    assert rotate["ranges"]["metaaugment-v1"] == {"at_zero": 0, "at_ten": 30, "signed": True}
    assert rotate["ranges"]["wide"]["at_ten"] == 135
    assert mapolicy("operations", "identity").out == "Identity  no level; leaves the image as it is\n"
    spaces = mapolicy("operations", "wide", "--json").json["spaces"]
    assert spaces == [{"name": "wide", "description": "operation space; TrivialAugment's wide ranges"}]
    assert mapolicy("operations", "trivialaugment").out == f"wide  {spaces[0]['description']}\n"
    named = {row["name"]: row for row in mapolicy("policies", "--json").json["rows"]}
    assert {*ZERO_COST_POLICIES, *SAMPLERS, *pba.NAMES} <= named.keys()
    assert named["adversarial"]["reported"] == "98.10 / 84.51"
    assert named["dada"]["cost"] == "0.1 GPU hours"
    (recipe,) = mapolicy("recipes", "search-cifar10-wrn40_2", "--json").json["rows"]
    assert recipe["target"] == "96.79 +- .06 (5 runs; baseline 94.7)"
    assert recipe["command"].startswith("mapolicy search cifar10 --proxy wrn40_2")
    (vit,) = mapolicy("archs", "vit_tiny_patch16_224", "--json").json["rows"]
    assert (vit["image_size"], vit["fixed_size"]) == (224, True)
    assert mapolicy("archs", "wrn34_7").out.split() == ["wrn34_7", "WRN-34-7;", "for", "32", "pixels"]
    assert mapolicy("archs", "pyramidnet").out.startswith("pyramidnet ")


def test_a_word_that_nothing_has(mapolicy) -> None:
    outcome = mapolicy("archs", "convnex_atto")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith("mapolicy: nothing here has 'convnex_atto' in it; the closest are convnext_atto, ")
    assert mapolicy("archs", "convnex_atto", "--json").json == {"rows": []}
