"""Download a file from an https address within limits of size and time."""

import http.client
import ssl
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from typing import IO
from urllib.parse import SplitResult, urlsplit

from ..errors import EnvironmentFault, InputError, MapolicyError, UsageError
from .limits import Limits
from .source import redacted

TIMEOUT = 30.0  # seconds without a byte
LONGEST_DOWNLOAD = 3600.0  # seconds; a server that sends a byte now and then would otherwise never time out

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def download(address: str, limits: Limits) -> bytes:
    """Download a whole file, within `LONGEST_DOWNLOAD` seconds.

    Args:
        address: https; http only on this machine. The same holds for redirections.
        limits: a file of more than `file_bytes` is rejected, before its first byte if the server states its size.

    Raises:
        UsageError: the address is not valid, or holds a password.
        InputError: the file does not exist, may not be read, or is too large.
        EnvironmentFault: the network or the server failed, or took too long.
    """
    start, place = _checked(address), redacted(address)
    deadline = time.monotonic() + LONGEST_DOWNLOAD
    answer: Future[bytes] = Future()

    def work() -> None:
        try:
            answer.set_result(_download(address, start, deadline, limits))
        except BaseException as problem:  # `answer.result` raises it in the calling thread
            answer.set_exception(problem)

    # In a thread, because a socket's timeout limits each wait and not their sum: a server can delay name look-up,
    # handshake and each header. An abandoned thread ends with its connection, at the latest with the process.
    threading.Thread(target=work, name="download", daemon=True).start()
    try:
        return answer.result(LONGEST_DOWNLOAD)
    except TimeoutError:
        raise _took_too_long(place) from None


def too_large(place: str, size: int | None, limits: Limits) -> InputError:
    """The error for a file of `size` bytes; None where the size is unknown but above the limit."""
    why = f"has {'more' if size is None else f'{size} bytes, more'} than the {limits.file_bytes} allowed"
    return InputError(place, why, limits.how_to_raise("file_bytes", size))


def _checked(address: str) -> SplitResult:
    place = redacted(address)
    if not (address.isascii() and address.isprintable()) or " " in address:
        why = "has a character that an address cannot have"
        raise UsageError(place, why, "write it percent-encoded, a space as %20")
    try:
        parts = urlsplit(address)
        # A host that `redacted` hides is not valid, though urllib may accept a part of it.
        allowed = _may_be_opened(parts, parts) and not place.endswith("://...") and parts.port != 0
        holds_password = parts.username is not None or parts.password is not None
    except ValueError:
        allowed = holds_password = False
    if not allowed:
        raise UsageError(place, "is not a path, an https address or an hf:// reference", "give one of these")
    if holds_password:
        raise UsageError(place, "holds a password, which is never sent", "give a plain address")
    return parts


def _may_be_opened(parts: SplitResult, start: SplitResult) -> bool:
    """Whether an address is https, or http on this machine (for tunnels and tests) where the user's was so too."""
    if parts.scheme == "https":
        return True
    return {parts.scheme, start.scheme} == {"http"} and parts.hostname in _LOOPBACK and start.hostname in _LOOPBACK


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def __init__(self, start: SplitResult, place: str) -> None:
        self._start, self._place = start, place

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _may_be_opened(urlsplit(newurl), self._start):
            fp.close()
            why = "it redirects to an address that is not https"
            raise EnvironmentFault(self._place, why, "download it yourself and give the path")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(address: str, start: SplitResult, deadline: float, limits: Limits) -> bytes:
    place = redacted(address)
    opener = urllib.request.build_opener(_Redirects(start, place))
    request = urllib.request.Request(address, headers={"User-Agent": "mapolicy"})
    try:
        with opener.open(request, timeout=min(TIMEOUT, LONGEST_DOWNLOAD)) as response:
            return _read(response, place, deadline, limits)
    except MapolicyError:
        raise
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code in (401, 403):
            why = f"asks for an account (HTTP {problem.code})"
            raise InputError(place, why, "download it yourself and give the path") from None
        if 400 <= problem.code < 500:
            raise InputError(place, f"there is no such file (HTTP {problem.code})", "check the address") from None
        raise EnvironmentFault(place, f"the server answered HTTP {problem.code}", "try again later") from None
    except (OSError, http.client.HTTPException, ValueError) as problem:
        raise EnvironmentFault(place, f"cannot be downloaded ({_reason(problem)})", "check the connection") from None


def _reason(problem: Exception) -> str:
    """Why it failed, in the system's words; the library's may repeat the address or text from the server."""
    cause = getattr(problem, "reason", problem)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return str(cause.verify_message)
    return str(getattr(cause, "strerror", None) or type(cause).__name__)


def _read(response: http.client.HTTPResponse, place: str, deadline: float, limits: Limits) -> bytes:
    """The body, if it is complete and within the limit. A stated length is checked before the first byte is read."""
    announced = response.headers.get("Content-Length")
    length = None if announced is None else int(announced)
    if length is not None and length > limits.file_bytes:
        raise too_large(place, length, limits)
    content = bytearray()
    while chunk := response.read1(2**16):
        content += chunk
        if len(content) > limits.file_bytes:
            raise too_large(place, None, limits)
        if time.monotonic() > deadline:
            raise _took_too_long(place)
    if length is not None and len(content) != length:
        why = f"the download was interrupted after {len(content)} of {length} bytes"
        raise EnvironmentFault(place, why, "try again")
    return bytes(content)


def _took_too_long(place: str) -> EnvironmentFault:
    return EnvironmentFault(place, f"took longer than {LONGEST_DOWNLOAD:g} seconds", "try again later")
