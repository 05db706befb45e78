"""A bundle of either kind: told apart, checked, read once."""

from pathlib import Path

import pytest

from mapolicy.bundle import load as opening
from mapolicy.bundle import manifest_base as sealed
from mapolicy.bundle.dataset_level import DatasetPolicy
from mapolicy.bundle.limits import Limits
from mapolicy.bundle.load import SearchedFile, open_bundle, parse_any
from mapolicy.bundle.source import Fetched
from mapolicy.errors import InputError
from tests.bundle.test_dataset_level import forged
from tests.helpers.bundle_factory import container, forge, manifest_with, spelled

KINDS = {"searched": (forge(), SearchedFile), "dataset-level": (forged({}), DatasetPolicy)}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_it_is(kind: str, tmp_path: Path) -> None:
    content, expected = KINDS[kind]
    (tmp_path / "a").write_bytes(content)
    opened = open_bundle(tmp_path / "a")
    assert isinstance(opened.policy, expected)
    assert opened.fetched.content == content
    assert opened.limits == Limits()
    assert open_bundle(tmp_path / "a", opened.policy.digest).policy.digest == opened.policy.manifest.digest
    with pytest.raises(InputError, match="another bundle than the one asked for"):
        open_bundle(tmp_path / "a", "0" * 64)
    with pytest.raises(InputError, match="--limit header_bytes="):
        open_bundle(tmp_path / "a", limits=Limits(header_bytes=8))


@pytest.mark.parametrize("kind", KINDS)
def test_containers_and_manifests_are_read_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(module, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments: calls.append(name) or original(*arguments))

    counted(opening, "read_container")
    counted(sealed.canonical_json, "parse")
    parse_any(Fetched(KINDS[kind][0], "x", "x"))
    assert calls == ["read_container", "parse", "parse"], "the header's JSON, the manifest's"


def test_what_is_neither_is_refused() -> None:
    for content, says in (
        (container({"mapolicy": spelled(manifest_with({"kind": "per-class"}))}, {}), "of kind 'per-class'"),
        (container({"mapolicy": spelled(manifest_with({"kind": ["dataset-level"]}))}, {}), "of kind a list of 1"),
        (container({"mapolicy": "[]"}, {}), "expected a JSON object"),
        (forge({"search.settings.kind": "dataset-level", "note": ["x"]}), "note: found a list of 1"),
        (b"", "has 0 bytes"),
    ):
        with pytest.raises(InputError, match=says):
            parse_any(Fetched(content, "x", "x"))
    assert isinstance(parse_any(Fetched(forge({"search.settings.kind": "dataset-level"}), "x", "x")), SearchedFile)
