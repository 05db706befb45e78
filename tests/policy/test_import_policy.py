"""Published policies: their steps against torchvision's own pixels and Fast AutoAugment's own arithmetic."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from mapolicy.errors import InputError, UsageError
from mapolicy.policy.import_policy import AUTOAUGMENT, import_policy
from mapolicy.transforms.functional import OPERATIONS
from mapolicy.transforms.space import OPERATION_NAMES
from tests.policy.test_autoalbument import FLIP, NOTHING, ROTATE, document, stage

FUNCTIONS = {operation.name: operation.function for operation in OPERATIONS}
# Blends round differently, affine operations of torchvision pivot elsewhere: their values are compared instead.
AFFINE = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


@pytest.mark.parametrize("dataset", AUTOAUGMENT)
def test_autoaugment_does_what_torchvision_does(dataset: str) -> None:
    kind = v2.AutoAugmentPolicy(dataset)
    theirs = v2.AutoAugment(kind)
    imported = import_policy(f"autoaugment-{dataset}").manifest
    assert imported.lost == ()
    assert len(imported.sub_policies) == 25
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fill = torch.zeros(3, dtype=torch.uint8)
    for ours, pair in zip(imported.sub_policies, theirs._get_policies(kind), strict=True):
        for step, (name, probability, index) in zip(ours, pair, strict=True):
            assert step.probability == probability
            magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
            table = magnitudes(10, 32, 32)
            magnitude = 0.0 if table is None else float(table[index])
            assert step.mirrored == (signed and magnitude != 0)
            if name in AFFINE:
                scale = 32 if name.startswith("Translate") else 1
                assert step.value * scale == pytest.approx(magnitude, abs=1e-5)
                continue
            expected = theirs._apply_image_or_video_transform(
                image, name, magnitude, v2.InterpolationMode.NEAREST, {torch.Tensor: [0, 0, 0]}
            )
            value = torch.tensor([step.value], dtype=torch.float64)
            found = FUNCTIONS[step.operation](image[None], value, fill)[0]
            inner = slice(1, -1) if name == "Sharpness" else slice(None)
            difference = (found.int() - expected.int())[:, inner, inner].abs().max()
            assert difference <= (2 if step.mirrored else 1), (name, magnitude)


def test_randaugment_is_all_sequences() -> None:
    manifest = import_policy("randaugment:2,9").manifest
    assert len(manifest.sub_policies) == 14**2
    assert {step.operation for steps in manifest.sub_policies for step in steps} == set(OPERATION_NAMES)
    assert {step.probability for steps in manifest.sub_policies for step in steps} == {1.0}
    values = {step.operation: step.value for steps in manifest.sub_policies for step in steps}
    assert values["Rotate"] == pytest.approx(9)  # 30 of 30 is 30 degrees
    assert values["Brightness"] == pytest.approx(0.27)
    assert values["Solarize"] == pytest.approx(255 * 0.7)
    assert len(import_policy("randaugment:1,0").manifest.sub_policies) == 14


@pytest.mark.parametrize(
    "name",
    ["randaugment:0,9", "randaugment:4,9", "randaugment:2,31", "randaugment", "autoaugment", "autoaugment-mnist"],
)
def test_numbers_and_names_that_cannot_be_meant(name: str) -> None:
    with pytest.raises(UsageError, match=r"randaugment|autoaugment"):
        import_policy(name)


PYTHON = (
    "[[('Rotate', 0.25, 0.75), ('Invert', 0.5, 0.1)], [('Cutout', 0.3, 0.2), ('Contrast', 1, 1)],\n [('Cutout', 1, 1)]]"
)
JSON = PYTHON.replace("'", '"').replace("(", "[").replace(")", "]")


@pytest.mark.parametrize("text", [PYTHON, JSON], ids=["Python", "JSON"])
def test_fast_autoaugments_list(text: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    manifest = import_policy(str(tmp_path / "list")).manifest
    (rotate, invert), (contrast,), nothing = manifest.sub_policies
    assert nothing == ()
    assert manifest.lost == ("Cutout in 2 steps: no counterpart",)
    assert (rotate.operation, rotate.probability, rotate.value, rotate.mirrored) == ("Rotate", 0.25, 15.0, True)
    assert (invert.operation, invert.value, invert.mirrored) == ("Solarize", 0.0, False)
    assert (contrast.operation, contrast.value, contrast.mirrored) == ("Contrast", 0.9, False)


@pytest.mark.parametrize(
    ("name", "level", "value"),
    [
        ("ShearX", 0.0, -0.3), ("TranslateY", 1.0, 0.45), ("Posterize", 0.0, 4), ("Posterize", 0.99, 1),
        ("Solarize", 0.5, 128), ("Brightness", 0.0, -0.9), ("AutoContrast", 0.7, 0),
    ],
)  # fmt: skip
def test_levels_become_values(name: str, level: float, value: float, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(repr([[(name, 0.5, level)]]))
    ((step,),) = import_policy(str(tmp_path / "list")).manifest.sub_policies
    assert step.value == pytest.approx(value)


def test_invert_is_solarize_at_zero() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found = FUNCTIONS["Solarize"](image, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.uint8))
    assert torch.equal(found, 255 - image)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "{}", "[]", "[[]]", "[1]", "[[1]]",
        "[[('Rotate', 2, 0.5)]]", "[[('Rotate', 0.5, 7)]]", "[[('Rotate', 0.5)]]",
        "[[('Rotate', 'a', 0.5)]]", "[[('\\x1b', 0.5, 0.5)]]", "[[('Cutout', 0.5, 0.5)]]", "__import__('os').getcwd()",
        "[[('Rotate', float('nan'), 1)]]", '[[["Rotate", NaN, 1]]]', "[" * 5000, "[[('Rotate', 1, 1)] * 99]", "\x00",
        "[[('Rotate', 1, 1), ('Rotate', 1, 1)] for _ in 'x']", repr([[("Rotate", 1, 1)] * 9]), repr([[]] * 5000),
        "[[('Rotate', 1, 1)]", "[[('Rotate' 1, 1)]]", "[[('Rotate', 1, 1e999)]]", "[[('Rotate', -0.1, 1)]]", "[[{}]]",
        "[[('R' * 9, 1, 1)]]", "[[('\\x52otate', 1, 1)]]", "[[('ä', 1, 1)]]",
        "1", "'x'", "[[[[[]]]]]",
    ],
    ids=lambda text: repr(text[:24]),
)  # fmt: skip
def test_what_is_no_list(text: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as problem:
        import_policy(str(tmp_path / "list"))
    assert_one_line(str(problem.value))


def assert_one_line(line: str) -> None:
    assert line.isascii()
    assert line.isprintable()
    assert len(f"mapolicy: error: {line}") <= 240


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[('Rotate', True, 1)]]", "sub-policy 0 step 0: probability is True, expected a number from 0 to 1"),
        ('[[["Rotate", true, 1]]]', "sub-policy 0 step 0: probability is True, expected a number from 0 to 1"),
        ('[[], [["Rotate", 1, 1], ["Rotate", 1, false]]]', "sub-policy 1 step 1: level is False, expected a number"),
        ("[[('Rotate', '0.5', 1)]]", "sub-policy 0 step 0: probability is '0.5', expected a number from 0 to 1"),
        ('[[["Rotate", 1, null]]]', "sub-policy 0 step 0: level is None, expected a number from 0 to 1"),
        ("[[(1, 1, 1)]]", "sub-policy 0 step 0: operation is 1, expected a name"),
        ("[[('Rotate', 1)]]", "sub-policy 0 step 0 is a list of 2, expected operation, probability and level"),
        ("[[('Rotate', 1, 1)], 7]", "sub-policy 1 is 7, expected at most 8 steps"),
        ("[[('Rotate', 1, 1)]] # mine", "has the character '#', which no list of this kind has"),
        ("[[('Cutout', 1, 1)]]", "no operation of it has a counterpart"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(InputError, match=re.escape(says)) as problem:
        import_policy(str(tmp_path / "list"))
    assert_one_line(str(problem.value))


@pytest.mark.parametrize(
    "content",
    [
        b"-" * 200_000 + b"1", b"1" + b"+1" * 100_000, b"[" * 200_000, b"(" * 100_000 + b")" * 100_000,
        b"[" + b"[]," * 66_000 + b"]", b"[[" + b"['a',1,1]," * 20_000 + b"]]", b"'" * 200_001, b"9" * 200_000,
        b"," * 200_000, b"[" + b"," * 200_000 + b"]", b"{" * 200_000, b'{"a":' * 40_000,
        b'{"transform":' + b"[]" * 99_999,
    ],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_a_large_expression_is_refused_at_once(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(content)
    start = time.process_time()
    with pytest.raises(InputError) as problem:
        import_policy(str(tmp_path / "list"))
    assert time.process_time() - start < 5, "a fraction of a second; what evaluates it takes several"
    assert_one_line(str(problem.value))


def test_more_unknown_operations_than_can_be_listed(tmp_path: Path) -> None:
    steps = [[("Rotate", 1.0, 1.0)], *([(f"Mine{number:03}", 1.0, 1.0)] for number in range(70))]
    (tmp_path / "list").write_text(repr(steps))
    with pytest.raises(InputError, match=r"98\.6% of all draws: Mine000, Mine001.*--drop-unknown"):
        import_policy(str(tmp_path / "list"))
    lost = import_policy(str(tmp_path / "list"), drop_unknown=True).manifest.lost
    assert len(lost) == 64
    assert lost[0] == "Mine000: no counterpart, 1.41% of all draws"
    assert lost[-1] == "7 more operations: no counterpart"


def test_pythons_spelling_of_a_list(tmp_path: Path) -> None:
    texts = (
        "[[['Rotate', 1, 1]]]",
        '(((\n"Rotate", 1.0, 1e0,),),)\n',
        "[ [ ( 'Rotate' , +1 , 1 ) , ] , ]".replace("+", ""),
    )
    for text in texts:
        (tmp_path / "list").write_text(text)
        ((step,),) = import_policy(str(tmp_path / "list")).manifest.sub_policies
        assert (step.operation, step.value) == ("Rotate", 30)


def test_what_is_wrong_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("import os")
    code = (
        "import sys\nfrom mapolicy.errors import MapolicyError\n"
        "from mapolicy.policy.import_policy import import_policy\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        import_policy(name)\n        sys.exit('was taken')\n"
        "    except MapolicyError:\n        pass\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)\n"
    )
    names = ["autoaugment-mars", "randaugment:9,9", "randaugment:2,99", "missing", "list"]
    command = [sys.executable, "-c", code, *names]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


# AutoAlbument.


def test_autoalbuments_policy_is_imported_if_the_user_says_so(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(document([stage(ROTATE, (FLIP, 0.25), (NOTHING, 0.25))])))
    with pytest.raises(InputError, match=r"without counterpart here, 25.0% of all draws: HorizontalFlip; add --drop"):
        import_policy(str(path))
    manifest = import_policy(str(path), drop_unknown=True).manifest
    assert manifest.source == "AutoAlbument's policy"
    assert "HorizontalFlip: no counterpart, 25.00% of all draws" in manifest.lost
    assert manifest.note == "Without HorizontalFlip: 25.0% of all draws."
    assert sum(map(len, manifest.sub_policies)) == 500
    path.write_text(json.dumps(document([stage(ROTATE)])))
    assert import_policy(str(path)).manifest.note == ""


# Lists with names: DADA's genotype.py, or a JSON object.

FIRST = [[("Rotate", 0.25, 0.75), ("Cutout", 0.5, 0.5)], [("Invert", 0.75, 0.1)]]
SECOND = [[("Flip", 0.5, 0.5), ("Contrast", 1.0, 1.0)], [("Cutout", 0.5, 0.0)]]
GENOTYPES = f"# found policies\n\nFIRST = first_list_of_25 = {FIRST}\n# OLD = {SECOND}\nSECOND = {SECOND}\n"


@pytest.mark.parametrize("text", [GENOTYPES, json.dumps({"FIRST": FIRST, "SECOND": SECOND})], ids=["Python", "JSON"])
def test_a_list_of_several_is_chosen_by_its_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "genotype.py"
    path.write_text(text)
    manifest = import_policy(str(path), which="FIRST").manifest
    (rotate,), (invert,) = manifest.sub_policies
    assert (rotate.operation, rotate.probability, rotate.value, rotate.mirrored) == ("Rotate", 0.25, 15.0, True)
    assert (invert.operation, invert.value) == ("Solarize", 0.0)
    assert manifest.source == "list FIRST of 2 sub-policies"
    assert manifest.lost == ("Cutout: no counterpart, 33.33% of all draws",)
    with pytest.raises(UsageError, match=r"genotype.py: has the lists 'FIRST', 'SECOND'; add --list NAME"):
        import_policy(str(path))
    with pytest.raises(UsageError, match="--list: 'THIRD' is not one of 'FIRST', 'SECOND'; name one of them"):
        import_policy(str(path), which="THIRD")
    with pytest.raises(InputError, match=r"without counterpart here, 25.0% of all draws: Flip; add --drop-unknown"):
        import_policy(str(path), which="SECOND")
    manifest = import_policy(str(path), drop_unknown=True, which="SECOND").manifest
    assert [len(steps) for steps in manifest.sub_policies] == [1, 0]
    assert manifest.lost[1] == "Flip: no counterpart, 25.00% of all draws"


def test_a_single_list_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"POLICY = {FIRST}")
    assert len(import_policy(str(tmp_path / "list")).manifest.sub_policies) == 2


@pytest.mark.parametrize(
    "text",
    [
        "A = [[('Rotate', 1, 1)]]\nprint(A)\n", "A = [[('Rotate', 1, 1)]] + B", "A = [__import__('os')]",
        "import os\nA = [[('Rotate', 1, 1)]]", "A = [[('Rotate', 1, 1)]]; B = 1", "A = [] \nB = 7", "A = [60, 0]",
        "A = [[('Rotate'=1, 1, 1)]]", "A = [[('Rotate', 1, 1)]", "A = []\n" * 201, "\u00e4 = [[('Rotate', 1, 1)]]",
        '{"A": 7}', '{"A": [[["Rotate", 2, 1]]]}', '{"A": [], "A": []}', '{"A": [[["Rotate", NaN, 1]]]}',
        '{"A": ' + "[" * 5000 + "}", '{"\\u001b": [["x"]]}', '{"A": [1]}', "A = " * 100_000 + "[]",
    ],
    ids=lambda text: repr(text[:24]),
)  # fmt: skip
def test_what_are_no_named_lists(text: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(InputError) as problem:
        import_policy(str(tmp_path / "list"), which=None)
    assert time.process_time() - start < 5
    assert_one_line(str(problem.value))
