"""`mapolicy inspect`: a bundle's figures, and bundles that are refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mapolicy import PolicyBundle
from tests.helpers.bundle_factory import forge, forge2
from tests.helpers.command_line import TRAIN, run_process


def test_inspect_json_and_its_figures(mapolicy, bundle_file: Path, bundle: PolicyBundle) -> None:
    facts = mapolicy("inspect", bundle_file, "--json").json
    assert facts["digest"] == bundle.digest
    assert facts["alpha"] == [pytest.approx(bundle.alpha.item())]
    probabilities = bundle.probabilities.flatten()
    assert facts["likeliest"][0]["probability"] == pytest.approx(probabilities.max().item())
    assert facts["unlikeliest"][0]["probability"] == pytest.approx(probabilities.min().item())
    first = facts["likeliest"][0]
    names = bundle.manifest.operations.names
    row, column = names.index(first["first"]), names.index(first["second"])
    assert bundle.probabilities[row, column].item() == pytest.approx(first["probability"])
    assert facts["parameters"]["policy"] == sum(p.numel() for p in bundle.build_policy().parameters())


def test_inspect_says_first_what_was_learned_and_checked(mapolicy, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(forge2({"search.settings.weighting": "equal", "results.weight_spread": 0.0}))
    shown = mapolicy("inspect", "x")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0].startswith("the learned policy is 8.0 points above trivialaugment on 100 held-out images (95 %")
    assert lines[2] == "what was learned"
    assert lines[3].startswith("  Rotate at -30 to -15 degrees harms")
    assert "this policy sees the transformation, not the image" in shown.out
    assert "  none                  70.0 %; the bundle's policy +10.0 points" in shown.out
    assert "  learned, strength 30  80.0 %, the bundle's policy" in shown.out
    assert "weights'" not in shown.out, "they are all equal"
    facts = mapolicy("inspect", "x", "--json").json
    assert facts["verification"]["verdict"] == lines[0]
    assert facts["levels"]["strength"] == 30
    assert facts["equal_weights"] is True


def test_inspect_of_format_1_has_neither(mapolicy, bundle_file: Path) -> None:
    facts = mapolicy("inspect", bundle_file, "--json").json
    assert facts["levels"] is facts["verification"] is None
    shown = mapolicy("inspect", bundle_file).out
    assert "what was learned" not in shown
    assert shown.startswith("bundle ")
    assert "weights' spread" in shown


def test_inspect_counts_parameters_and_no_buffers(mapolicy, bundle_file: Path, bundle: PolicyBundle) -> None:
    extractor = bundle.build_extractor(torch.device("cpu"))
    counted = mapolicy("inspect", bundle_file, "--json").json["parameters"]["extractor"]
    assert counted == sum(parameter.numel() for parameter in extractor.parameters())


def test_a_hostile_bundle_exits_3_and_another_digest_too(mapolicy, bundle_file: Path, tmp_path: Path) -> None:
    content = bytearray(bundle_file.read_bytes())
    content[-10] ^= 1
    (tmp_path / "edited.safetensors").write_bytes(content)
    mapolicy("inspect", "edited.safetensors").is_error(3, "digest")
    mapolicy("train", "--bundle", "edited.safetensors", *TRAIN).is_error(3, "digest")
    mapolicy("train", "--bundle", bundle_file, *TRAIN, "--expect-digest", "0" * 64).is_error(3, "digest")


def test_limits_are_raised_by_the_option_that_the_refusal_names(mapolicy, bundle_file: Path) -> None:
    outcome = mapolicy("inspect", bundle_file, "--limit", "tensors=9")
    outcome.is_error(3, "more than the 67 allowed", "--limit tensors=")
    option = re.search(r"--limit (\S+)", outcome.err)[1]
    assert mapolicy("inspect", bundle_file, "--limit", option).code == 0
    mapolicy("inspect", bundle_file, "--limit", "depth=9").is_error(2, "--limit", "header_bytes")
    mapolicy("train", "--bundle", bundle_file, *TRAIN, "--limit", "parameters=1000").is_error(3, "--limit parameters=7")
    mapolicy("train", "--bundle", bundle_file, *TRAIN, "--limit", "file_bytes=1000").is_error(3, "--limit file_bytes=")
    for command in (
        ("slim", bundle_file),
        ("export", bundle_file),
        ("pull", bundle_file),
        ("push", bundle_file, "a/b"),
    ):
        mapolicy(*command, "--limit", "tensors=9").is_error(3, f"--limit {option}")


def test_what_a_bundle_says_is_shown_clean_whatever_the_terminal(tmp_path: Path) -> None:
    """Markup stays text, and what an encoding does not have is escaped instead of failing."""
    note = "[/bold] <script>alert(1)</script> é 字"
    path = tmp_path / "b.safetensors"
    path.write_bytes(forge({"note": note, "dataset.classes": ["zero", "eins", "deux", "三"]}))
    for encoding, expected in (("utf-8", note), ("ascii", note.encode("ascii", "backslashreplace").decode())):
        result = run_process("inspect", str(path), folder=tmp_path, PYTHONIOENCODING=encoding)
        assert result.returncode == 0, result.stderr
        assert f"note                   {expected}" in result.stdout
        assert "\x1b" not in result.stdout
    document = run_process("inspect", str(path), "--json", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert json.loads(document.stdout)["note"] == note


def test_inspect_does_not_import_torch(bundle_file: Path) -> None:
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        f"sys.argv = ['mapolicy', 'inspect', {str(bundle_file)!r}]\n"
        "(entry,) = entry_points(group='console_scripts', name='mapolicy')\n"
        "try:\n    entry.load()()\n"
        "finally:\n    assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "likeliest" in result.stdout


def test_a_closed_pipe_is_no_traceback(bundle_file: Path, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mapolicy")
    process = subprocess.Popen(
        [script, "inspect", str(bundle_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert errors == ""
