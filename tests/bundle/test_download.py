"""Downloads from a server that speaks http, which is taken on loopback alone; and what of a place is shown."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from mapolicy.bundle import download as web
from mapolicy.bundle.download import download
from mapolicy.bundle.limits import Limits
from mapolicy.bundle.source import redacted
from mapolicy.errors import EnvironmentFault, InputError, UsageError
from tests.helpers.hub_server import HubServer

CONTENT = bytes(range(256)) * 40
LIMITS = Limits(file_bytes=2**20)


@pytest.fixture
def address(hub_server: HubServer) -> str:
    hub_server.large["a.safetensors"] = CONTENT
    return f"{hub_server.address}/plain/a.safetensors"


def test_an_address_is_followed_within_limits(hub_server: HubServer, address: str) -> None:
    hub_server.faults.append(("GET /plain/moved", (302, {"Location": address})))
    assert download(f"{hub_server.address}/plain/moved", LIMITS) == CONTENT
    hub_server.faults += [("GET /plain", (302, {"Location": address}))] * 20
    with pytest.raises(EnvironmentFault):
        download(address, LIMITS)
    assert len(hub_server.faults) > 10


@pytest.mark.parametrize("target", ["http://example.com/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_an_address_does_not_lead_elsewhere(hub_server: HubServer, address: str, target: str) -> None:
    hub_server.faults.append(("GET", (302, {"Location": f"{target}?key=secret"})))
    with pytest.raises(EnvironmentFault, match=r"redirects to an address that is not https|HTTP 302") as problem:
        download(address, LIMITS)
    assert "secret" not in str(problem.value)


@pytest.mark.parametrize(
    ("status", "kind", "why"),
    [(404, InputError, "no such file"), (401, InputError, "asks for an account"), (503, EnvironmentFault, "HTTP 503")],
)
def test_an_addresss_refusal(hub_server: HubServer, address: str, status: int, kind: type, why: str) -> None:
    hub_server.faults.append(("GET", (status, {})))
    with pytest.raises(kind, match=why):
        download(address, LIMITS)


def test_an_addresss_broken_promises(hub_server: HubServer, address: str) -> None:
    with pytest.raises(InputError, match=r"more than the 100 allowed; .* --limit file_bytes=10240 "):
        download(address, Limits(file_bytes=100))
    hub_server.faults.append(("GET", "cut"))
    with pytest.raises(EnvironmentFault, match="interrupted after 5120 of 10240 bytes"):
        download(address, LIMITS)


def test_a_length_that_is_not_said_is_counted(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "send_header", lambda *_: None)
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "protocol_version", "HTTP/1.0")
    with pytest.raises(InputError, match=r"has more than the 100 allowed; .* --limit file_bytes=NUMBER "):
        download(address, Limits(file_bytes=100))


# What is shown.

NO_ADDRESS = "not a path, an https address or an hf:// reference"
SECRETS = {
    "https://me:secret@example.com/a": ("https://example.com/a", "holds a password"),
    "https://secret@example.com/a": ("https://example.com/a", "holds a password"),
    "https://example.com/a b?key=secret": ("https://example.com/a b", "a character that an address cannot have"),
    "https://example.com/a?key=secret\n": ("https://example.com/a", "a character that an address cannot have"),
    "https://example.com/\u00e4?key=secret": ("https://example.com/\u00e4", "a character that an address cannot have"),
    "https://[::1?key=secret": ("https://...", NO_ADDRESS),
    "https://[::1]x/?key=secret": ("https://...", NO_ADDRESS),
    "https://me:secret@[::1/a": ("https://...", NO_ADDRESS),
    "https://example.com:secret/a": ("https://...", NO_ADDRESS),
    "https://example.com:99999/a?key=secret": ("https://example.com:99999/a", NO_ADDRESS),
    "https://example.com:0/a?key=secret": ("https://example.com:0/a", NO_ADDRESS),
    "https://me:se/secret@example.com/a": ("https://...", NO_ADDRESS),
    "https://me:se?secret@example.com/a": ("https://...", NO_ADDRESS),
    "https://me:se#secret@example.com/a": ("https://...", NO_ADDRESS),
    "http://me:secret@example.com/a?key=secret": ("http://example.com/a", NO_ADDRESS),
    "http://example.com/a?key=secret": ("http://example.com/a", NO_ADDRESS),
    "ftp://me:secret@example.com/a": ("ftp://example.com/a", NO_ADDRESS),
    "s3://bucket/a?key=secret": ("s3://bucket/a", NO_ADDRESS),
    "me:secret@https://example.com/a": ("...://...", NO_ADDRESS),
    "file:///etc/passwd?key=secret": ("file://...", NO_ADDRESS),
    "https://?key=secret": ("https://...", NO_ADDRESS),
}


@pytest.mark.parametrize("address", SECRETS, ids=ascii)
def test_secrets_are_neither_sent_nor_shown(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, why = SECRETS[address]
    assert redacted(address) == place
    monkeypatch.setattr(web, "_download", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(UsageError, match=why) as problem:
        download(address, LIMITS)
    assert str(problem.value).startswith(place)
    assert "secret" not in str(problem.value)


@pytest.mark.parametrize(
    "place",
    [
        "a.safetensors", "../x/a b?c#d@e", "hf://birds/policy@v1", "hf://birds/policy/a/b.safetensors@v1",
        "https://example.com/pkg@1.0/a", "https://[::1]:8443/a", "https://b\u00fccher.example/a",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_shown(place: str) -> None:
    assert redacted(place) == place


def test_what_fails_is_said_in_the_systems_words(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/a?key=secret"
        with pytest.raises(EnvironmentFault, match=r"cannot be downloaded \(Connection refused\)") as problem:
            download(nobody, LIMITS)
    assert "secret" not in str(problem.value)
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "send_response", lambda *_: None)
    with pytest.raises(EnvironmentFault, match=r"cannot be downloaded \(\w+\); check the connection$"):
        download(f"{hub_server.address}/plain/none", LIMITS)  # headers without a status line


# How long it may take.


@pytest.fixture
def dripping() -> Iterator[tuple[str, list[bytes], list[bytes]]]:
    """The address of a server that sends the first list's pieces one after the other, slowly, and what it has sent."""
    pieces: list[bytes] = []
    sent: list[bytes] = []
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(2**16)
            for piece in pieces:
                if done.wait(0.02):
                    return
                connection.sendall(piece)
                sent.append(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/a?key=secret", pieces, sent
    done.set()
    thread.join()
    listener.close()


HEADERS = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n"
SLOW = {
    "headers": [*(bytes([byte]) for byte in HEADERS + b"X: " + b"x" * 1500), b"\r\n\r\n" + b"x" * 100],
    "body": [HEADERS.replace(b"100", b"1500") + b"\r\n", *[b"x"] * 1500],
    "nothing": [b""] * 1500,
}


@pytest.mark.parametrize("what", SLOW)
def test_a_server_that_drips_does_not_hold_us(dripping, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address, pieces, sent = dripping
    pieces += SLOW[what]
    monkeypatch.setattr(web, "LONGEST_DOWNLOAD", 0.2)  # the whole answer takes half a minute, no wait that long
    with pytest.raises(EnvironmentFault, match=r"/a: (took longer than 0.2 seconds|cannot be downloaded \(Timeout)"):
        download(address, LIMITS)
    assert len(sent) < len(pieces), "nothing waited for the end"


def test_a_server_that_drips_may_take_its_time(dripping) -> None:
    address, pieces, _ = dripping
    pieces += [HEADERS + b"\r\n", *[b"x" * 10] * 10]
    assert download(address, LIMITS) == b"x" * 100


def test_a_download_that_was_given_up_ends(dripping, monkeypatch: pytest.MonkeyPatch) -> None:
    address, pieces, sent = dripping
    pieces += SLOW["body"]
    monkeypatch.setattr(web, "LONGEST_DOWNLOAD", 0.1)
    with pytest.raises(EnvironmentFault):
        download(address, LIMITS)
    left = [thread for thread in threading.enumerate() if thread.name == "download"]
    for thread in left:
        thread.join(20)
    assert not any(thread.is_alive() for thread in left)
    assert len(sent) < len(pieces), "it did not wait for the end"
