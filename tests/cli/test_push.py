"""`mapolicy push`: what is shared on the Hub, and what is not."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from mapolicy import PolicyBundle
from tests.helpers.bundle_factory import forge
from tests.helpers.command_line import TRAIN, snapshot
from tests.helpers.hub_server import HubServer


def test_push_pull_train(
    mapolicy, bundle_file: Path, bundle: PolicyBundle, hub_server: HubServer, tmp_path: Path
) -> None:
    pushed = mapolicy("push", bundle_file, "birds/digits", "--licence", "cc0-1.0", "--json")
    assert pushed.code == 0, pushed.err
    commit = pushed.json["commit"]
    assert pushed.json == {"bundle": f"hf://birds/digits@{commit}", "commit": commit, "digest": bundle.digest}
    files = hub_server.repositories["birds/digits"][commit]
    assert files["policy.safetensors"] == bundle_file.read_bytes()
    assert b"license: cc0-1.0" in files["README.md"]
    assert files["p_jk.png"].startswith(b"\x89PNG")

    pulled = mapolicy("pull", "hf://birds/digits", "--json", "--expect-digest", bundle.digest)
    assert pulled.json["from"] == f"hf://birds/digits@{commit}"
    assert (tmp_path / pulled.json["bundle"]).read_bytes() == bundle_file.read_bytes()
    assert pulled.json["bundle"] == "artifacts/digits.safetensors"
    mapolicy("pull", "hf://birds/digits").is_error(2, "exists", "--force")

    trained = mapolicy("train", "--bundle", "hf://birds/digits@main", *TRAIN, "--json", "--run-dir", "run")
    assert trained.code == 0, trained.err
    assert trained.json["bundle"] == f"hf://birds/digits@{commit}"
    assert f"bundle: hf://birds/digits@{commit}" in trained.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["bundle"] == trained.json["bundle"]
    assert mapolicy("inspect", trained.json["bundle"], "--json").json["digest"] == bundle.digest

    again = mapolicy("push", bundle_file, "birds/digits", "--run", "run")
    assert again.code == 0, again.err
    assert "not stated" in again.out
    newest = hub_server.repositories["birds/digits"][hub_server.refs["birds/digits"]["main"]]
    assert b"| `test_resnet` | `frozen` |" in newest["README.md"]


def test_only_what_can_be_used_is_pushed(mapolicy, bundle: PolicyBundle, hub_server: HubServer, tmp_path: Path) -> None:
    name = next(name for name, tensor in bundle.tensors.items() if tensor.ndim == 4)
    huge = dict(bundle.tensors) | {name: torch.full_like(bundle.tensors[name], 3e38)}
    replace(bundle, tensors=huge).save(tmp_path / "huge")
    (tmp_path / "unfit").write_bytes(forge())
    for file, says in (("huge", "expected at most 1e+12"), ("unfit", "feature_width is 8")):
        assert mapolicy("inspect", file).code == 0
        mapolicy("push", file, "birds/digits").is_error(3, file, says)
    assert hub_server.log == []
    for command in ("inspect", "pull"):
        assert "its first use also checks the architecture" in mapolicy(command, "huge").out


def test_a_card_is_seen_before_it_is_pushed(mapolicy, bundle_file: Path, hub_server: HubServer, tmp_path: Path) -> None:
    outcome = mapolicy("push", bundle_file, "birds/digits", "--card-only", "page")
    assert outcome.code == 0, outcome.err
    assert snapshot(tmp_path) == ["page", "page/README.md", "page/p_jk.png"]
    assert hub_server.log == []


def test_what_cannot_be_shared_writes_nothing(
    mapolicy, bundle_file: Path, hub_server: HubServer, tmp_path: Path
) -> None:
    content = bundle_file.read_bytes()
    hub_server.commit("birds/damaged", {"policy.safetensors": content[:-8] + b"\1" * 8})
    mapolicy("push", bundle_file, "birds/new", "--expect-digest", "0" * 64).is_error(3, "another bundle than the one")
    assert "birds/new" not in hub_server.repositories
    mapolicy("pull", "hf://birds/damaged").is_error(3, "digest")
    mapolicy("train", "--bundle", "hf://birds/damaged", *TRAIN).is_error(3, "digest")
    mapolicy("pull", "hf://birds/none").is_error(3, "no such repository")
    mapolicy("pull", "hf://birds").is_error(2, "NAMESPACE/NAME")
    mapolicy("pull", bundle_file, "--expect-digest", "0" * 64).is_error(3, "digest")
    mapolicy("push", bundle_file, "digits").is_error(2, "NAMESPACE/NAME")
    mapolicy("push", "none.safetensors", "birds/digits").is_error(3, "No such file")
    mapolicy("push", bundle_file, "birds/digits", "--run", "none").is_error(3, "none")
    hub_server.faults += [("POST /api/repos", (401, {}))] * 2
    mapolicy("push", bundle_file, "birds/digits").is_error(5, "hf auth login")
    assert snapshot(tmp_path) == []
    assert "birds/digits" not in hub_server.repositories
