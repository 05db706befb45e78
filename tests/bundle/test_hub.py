"""References to bundles, and what a hub's server, an https server and a broken line do to them."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from mapolicy.bundle import fetch, hub
from mapolicy.bundle.format import read_bundle
from mapolicy.bundle.limits import Limits
from mapolicy.errors import EnvironmentFault, InputError, MapolicyError, UsageError
from tests.helpers.bundle_factory import forge
from tests.helpers.hub_server import HubServer

CONTENT = bytes(range(256)) * 40
LIMITS = Limits(file_bytes=2**20)


@pytest.fixture
def commit(hub_server: HubServer) -> str:
    return hub_server.commit("birds/policy", {"policy.safetensors": CONTENT, "old/first.safetensors": b"first"})


# Paths.


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_a_path(kind: type, tmp_path: Path, hub_server: HubServer) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    fetched = fetch.fetch(kind(tmp_path / "a"), LIMITS)
    assert (fetched.content, fetched.origin, fetched.commit) == (CONTENT, str(tmp_path / "a"), None)
    with pytest.raises(InputError, match=r"more than the 9 allowed; .* --limit file_bytes=10240 "):
        fetch.fetch(tmp_path / "a", Limits(file_bytes=9))
    with pytest.raises(InputError):
        fetch.fetch(Path("hf://birds/policy"), LIMITS)
    assert hub_server.log == [], "a path is never looked for in the network"


# The hub.


def test_a_branch_is_resolved_to_its_commit(hub_server: HubServer, commit: str) -> None:
    for reference in ("hf://birds/policy", "hf://birds/policy@main", "hf://birds/policy/policy.safetensors"):
        fetched = fetch.fetch(reference, LIMITS)
        assert fetched.content == CONTENT
        assert fetched.origin == f"hf://birds/policy@{commit}"
        assert fetched.commit == commit
        assert fetched.source == reference
    newer = hub_server.commit("birds/policy", {"policy.safetensors": b"newer"})
    assert fetch.fetch("hf://birds/policy", LIMITS).commit == newer != commit
    assert fetch.fetch(f"hf://birds/policy@{commit}", LIMITS).content == CONTENT


def test_a_branch_that_moves_meanwhile(hub_server: HubServer, commit: str) -> None:
    def move() -> None:
        commits = hub_server.repositories["birds/policy"]
        hub_server.commit("birds/policy", {"policy.safetensors": CONTENT[len(commits) :] + CONTENT[: len(commits)]})

    hub_server.faults += [("HEAD /birds", move)] * 2
    fetched = fetch.fetch("hf://birds/policy", LIMITS)
    assert (fetched.content, fetched.commit) == (CONTENT, commit), "the commit that was there when it was asked for"
    hub_server.faults.clear()
    newer = fetch.fetch("hf://birds/policy", LIMITS)
    assert newer.commit == hub_server.refs["birds/policy"]["main"] != commit
    assert newer.content == hub_server.repositories["birds/policy"][newer.commit]["policy.safetensors"]


def test_a_file_and_a_tag(hub_server: HubServer, commit: str) -> None:
    hub_server.refs["birds/policy"]["v1.0"] = commit
    fetched = fetch.fetch("hf://birds/policy/old/first.safetensors@v1.0", LIMITS)
    assert (fetched.content, fetched.origin) == (b"first", f"hf://birds/policy/old/first.safetensors@{commit}")


def test_a_commit_that_is_in_the_cache_needs_no_network(hub_server: HubServer, commit: str) -> None:
    pinned = fetch.fetch("hf://birds/policy", LIMITS).origin
    hub_server.log.clear()
    assert fetch.fetch(pinned, LIMITS).content == CONTENT
    assert hub_server.log == []


def test_offline_mode_takes_the_cache_or_fails(
    hub_server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch.fetch("hf://birds/policy", LIMITS)
    hub_server.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch.fetch("hf://birds/policy", LIMITS).commit == commit
    with pytest.raises(EnvironmentFault, match="is not in the cache, and HF_HUB_OFFLINE is set"):
        fetch.fetch("hf://birds/other", LIMITS)
    huggingface_hub.close_session()  # offline mode is looked at when a session is opened
    with pytest.raises(EnvironmentFault, match="HF_HUB_OFFLINE is set; unset it"):
        hub.publish("birds/policy", {"README.md": b"x"}, "m", private=False)
    assert hub_server.log == []
    monkeypatch.undo()
    huggingface_hub.close_session()


def test_a_file_too_large_is_refused_before_it_is_downloaded(hub_server: HubServer, commit: str) -> None:
    with pytest.raises(InputError, match=r"more than the 10239 allowed; .* --limit file_bytes=10240 "):
        fetch.fetch("hf://birds/policy", Limits(file_bytes=len(CONTENT) - 1))
    assert not [line for line in hub_server.log if line.startswith("GET")]


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("hf://birds/none", "no such repository"),
        ("hf://birds/policy@v7", "no such revision"),
        (f"hf://birds/policy@{'0' * 40}", "no such revision"),
        ("hf://birds/policy/none.safetensors", "no such file"),
    ],
)
def test_what_is_not_there(commit: str, reference: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        fetch.fetch(reference, LIMITS)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "why"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, InputError, "is gated"),
        (401, {}, EnvironmentFault, r"refuses it to this account \(HTTP 401\)"),
        (403, {}, EnvironmentFault, r"refuses it to this account \(HTTP 403\)"),
        (500, {}, EnvironmentFault, "HTTP 500"),
        (200, {}, EnvironmentFault, "is not the hub's"),
    ],
)
def test_what_the_server_refuses(
    hub_server: HubServer, commit: str, status: int, headers: dict, kind: type, why: str
) -> None:
    hub_server.faults += [("HEAD", (status, {"X-Error-Message": "\x1b[31mevil", **headers}))] * 3
    with pytest.raises(kind, match=why) as problem:
        fetch.fetch("hf://birds/policy", LIMITS)
    assert "evil" not in str(problem.value)


def test_nobody_listens(commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_url", lambda repository, file, revision: f"http://127.0.0.1:9/{repository}/{file}"
    )
    with pytest.raises(EnvironmentFault, match=r"connection to the hub failed \(ConnectError\)"):
        fetch.fetch("hf://birds/policy", LIMITS)


def test_an_interrupted_download_goes_on(
    hub_server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub_server.faults.append(("GET /birds", "cut"))
    assert fetch.fetch("hf://birds/policy", LIMITS).content == CONTENT
    assert caplog.text == "", "an error is one line, and this is none"


def test_a_download_that_stays_interrupted_leaves_nothing_to_use(
    hub_server: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub_server.faults += [("GET /birds", "cut")] * 40
    with pytest.raises(EnvironmentFault, match=r"connection to the hub failed|was interrupted"):
        fetch.fetch("hf://birds/policy", LIMITS)
    hub_server.faults.clear()
    assert fetch.fetch("hf://birds/policy", LIMITS).content == CONTENT


@pytest.mark.parametrize(
    "reference",
    [
        "hf://", "hf://birds", "hf:///policy", "hf://birds/policy@", "hf://birds/policy/", "hf://birds/../policy",
        "hf://birds/policy@../x", "hf://birds/policy/../x", "hf://birds/policy@a\nb", "hf://u:p@birds/policy",
        "hf://birds/policy/.cache/x", "hf://birds/policy?x=secret", "hf://me:secret@birds/policy", "HF://birds/policy", "hf://birds/po..licy",
        f"hf://birds/{'a' * 200}",
    ],
)  # fmt: skip
def test_references_that_cannot_be_meant(hub_server: HubServer, reference: str) -> None:
    with pytest.raises(UsageError) as problem:
        fetch.fetch(reference, LIMITS)
    assert "secret" not in str(problem.value)
    assert hub_server.log == []


def test_what_is_fetched_is_checked_as_any_file(hub_server: HubServer, tmp_path: Path) -> None:
    content = forge()
    hub_server.commit("birds/policy", {"policy.safetensors": content})
    manifest, _ = read_bundle("hf://birds/policy")
    assert read_bundle("hf://birds/policy", manifest.digest)[0] == manifest
    with pytest.raises(InputError, match="it is another bundle than the one asked for"):
        read_bundle("hf://birds/policy", "0" * 64)
    hub_server.commit("birds/policy", {"policy.safetensors": content[:-8] + b"\0" * 8})
    with pytest.raises(InputError, match=r"hf://birds/policy: .*damaged or edited"):
        read_bundle("hf://birds/policy")
    hub_server.commit("birds/policy", {"policy.safetensors": b"\x80\x04K\x01." * 99})
    with pytest.raises(InputError, match="pickle"):
        read_bundle("hf://birds/policy")


# Publishing.


@pytest.mark.parametrize("private", [True, False])
def test_publish_and_fetch(hub_server: HubServer, private: bool, capfd: pytest.CaptureFixture) -> None:
    files = {"policy.safetensors": CONTENT, "README.md": b"---\nlicense: mit\n---\n# Birds\n", "p_jk.png": b"png"}
    first = hub.publish("birds/policy", files, "Policy 1", private=private)
    assert hub_server.private == {"birds/policy": private}
    assert {name: hub_server.repositories["birds/policy"][first][name] for name in files} == files
    second = hub.publish("birds/policy", {**files, "policy.safetensors": b"2"}, "Policy 2", private=private)
    assert fetch.fetch("hf://birds/policy", LIMITS).commit == second
    assert fetch.fetch(f"hf://birds/policy@{first}", LIMITS).content == CONTENT
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("start", ["POST /api/repos", "POST /api/models/birds/policy/preupload", "PUT"])
def test_an_account_that_may_not_write(hub_server: HubServer, start: str) -> None:
    if start != "POST /api/repos":  # who may not make one may write to one that is there
        hub_server.commit("birds/policy", {})
    hub_server.faults += [(start, (403, {}))] * 9
    with pytest.raises(EnvironmentFault, match=r"hf://birds/policy: the hub refuses it .*hf auth login"):
        hub.publish("birds/policy", {"policy.safetensors": CONTENT}, "m", private=False)


def test_a_hub_without_xet(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    commit = hub.publish("birds/policy", {"policy.safetensors": CONTENT}, "m", private=False)
    assert fetch.fetch(f"hf://birds/policy@{commit}", LIMITS).content == CONTENT


def test_a_push_that_fails_says_what_it_leaves(hub_server: HubServer) -> None:
    for made in (True, False):
        hub_server.faults.append(("POST /api/models/birds/policy/preupload", (403, {})))
        with pytest.raises(EnvironmentFault, match="refuses it") as problem:
            hub.publish("birds/policy", {"policy.safetensors": CONTENT}, "m", private=False)
        assert ("the repository was created and is empty" in str(problem.value)) == made


@pytest.mark.parametrize("name", ["policy", "a/b/c", "a/../b", "/b", "a b/c", "hf://a/b", "-a/b"])
def test_names_that_no_repository_has(hub_server: HubServer, name: str) -> None:
    with pytest.raises(UsageError, match="NAMESPACE/NAME"):
        hub.publish(name, {}, "m", private=False)
    assert hub_server.log == []


# Addresses; what a download does is in test_web.py.


def test_an_address_keeps_its_secrets(hub_server: HubServer) -> None:
    hub_server.large["a.safetensors"] = CONTENT
    address = f"{hub_server.address}/plain/a.safetensors"
    fetched = fetch.fetch(f"{address}?signature=secret#part", LIMITS)
    assert fetched.content == CONTENT
    assert fetched.origin == fetched.source == address, "a signature is nobody else's business"
    assert hub_server.tokens == {None}, "the hub's token goes to the hub alone"


def test_the_hub_gets_its_token(hub_server: HubServer, commit: str) -> None:
    fetch.fetch("hf://birds/policy", LIMITS)
    assert hub_server.tokens == {"Bearer hf_of_the_tests"}


# As a process of its own: what the environment says is what huggingface_hub takes.


def test_the_environment_names_the_hub(hub_server: HubServer, tmp_path: Path) -> None:
    commit = hub_server.commit("birds/policy", {"policy.safetensors": forge()})
    script = Path(sys.executable).with_name("mapolicy")
    command = [script, "inspect", "hf://birds/policy"]

    def run(**environment: str) -> subprocess.CompletedProcess:
        full = {**os.environ, "HF_HOME": str(tmp_path), **environment}
        return subprocess.run(command, env=full, capture_output=True, text=True, timeout=60, check=False)

    offline = run(HF_HUB_OFFLINE="1")
    assert offline.returncode == 5
    assert offline.stderr.splitlines() == [
        "mapolicy: error: hf://birds/policy: is not in the cache, and HF_HUB_OFFLINE is set; "
        "unset HF_HUB_OFFLINE, or pull it once while online"
    ]
    hub_server.faults.append(("GET /birds", "cut"))
    online = run()
    assert (online.returncode, online.stderr) == (0, "")
    assert f"hf://birds/policy@{commit}" in online.stdout
    hub_server.log.clear()
    again = run(HF_HUB_OFFLINE="1")
    assert again.stdout == online.stdout
    assert hub_server.log == []
    refused = run(HF_ENDPOINT="http://127.0.0.1:9")
    assert refused.returncode == 5
    assert len(refused.stderr.splitlines()) == 1


def test_every_error_is_ours(commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "cache/blobs/x")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(MapolicyError, match="cache/blobs/x: No space left on device"):
        fetch.fetch("hf://birds/policy", LIMITS)
