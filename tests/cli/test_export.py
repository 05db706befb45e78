"""`mapolicy export`: p_jk for other libraries."""

from pathlib import Path

import pytest

from tests.helpers.command_line import snapshot


@pytest.mark.parametrize(("form", "name"), [("torchvision", "py"), ("albumentations", "json")])
def test_export(mapolicy, bundle_file: Path, tmp_path: Path, form: str, name: str) -> None:
    outcome = mapolicy("export", bundle_file, "--to", form)
    assert outcome.code == 0, outcome.err
    assert "the weights P_i" in outcome.out
    assert snapshot(tmp_path / "artifacts") == [f"digits_{form}.{name}"]
    mapolicy("export", bundle_file, "--to", form).is_error(2, "exists")
    mapolicy("export", bundle_file, "--to", "kornia").is_error(2, "torchvision")
    assert "lost" in mapolicy("export", bundle_file, "--to", form, "--force", "--json").json
