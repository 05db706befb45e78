"""The local web page of `mapolicy explore`: pick an image and a transformation, and see image, weight and rank.

Only the user who started it can use it. The server listens on the loopback address, every path starts with a random
token, and requests under another host name (DNS rebinding) are rejected. Nothing is written to disk.
"""

import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentFault, MapolicyError, UsageError
from ..runtime.sanitize import printable
from .explorer import Explorer
from .templating import inlined, script_hash

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = "127.0.0.1"
INSTALL = "pip install 'mapolicy[explore]'"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def _content_security_policy() -> str:
    script = inlined("explore.js")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {script_hash(script)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guard:
    """ASGI middleware that rejects requests without the token or under another host name, and sets security headers.

    Args:
        app: the application behind it.
        token: first part of every path.
        hosts: accepted values of the Host header.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], token: str, hosts: Sequence[str]
    ) -> None:
        self._app, self._token, self._hosts = app, token.encode(), tuple(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: 404 unless host and token are right."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not supported")
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        first, slash, rest = scope["path"].removeprefix("/").partition("/")
        known = secrets.compare_digest(first.encode("utf-8", "surrogatepass"), self._token)
        if not (known and slash) or len(hosts) != 1 or hosts[0] not in self._hosts:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app({**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}, receive, guarded)


_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


def application(explorer: Explorer, token: str, hosts: Sequence[str]) -> "Starlette":
    """The web application, behind a `Guard`.

    Args:
        explorer: images and weights.
        token, hosts: as in `Guard`.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    page = explorer.page()
    headers = {"content-security-policy": _content_security_policy()}

    # Plain functions: Starlette runs them in threads, so that the server keeps answering.
    def show_page(request: "Request") -> "Response":
        return HTMLResponse(page, headers=headers)

    def answer(request: "Request", function: Callable[["Request"], Any]) -> "Response":
        try:
            return JSONResponse(function(request))
        except MapolicyError as problem:
            return JSONResponse({"error": printable(problem)}, 400)

    def images(request: "Request") -> "Response":
        return answer(request, lambda asked: explorer.choice(_number(asked, "start")))

    def draw(request: "Request") -> "Response":
        return answer(request, lambda asked: explorer.draw())

    def weigh(request: "Request") -> "Response":
        return answer(
            request,
            lambda asked: explorer.weigh(_number(asked, "image"), asked.query_params.get("transformation", "")),
        )

    endpoints = {"": show_page, "images": images, "draw": draw, "weigh": weigh}
    routes = [Route(f"/{path}", endpoint) for path, endpoint in endpoints.items()]
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token, hosts=hosts)])


def _number(request: "Request", name: str) -> int:
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(name, f"{printable(text[:20])!r} is not the number of an image")
    return int(text)


class Site:
    """A server for the page, on a random port of the loopback address and under a random token.

    Args:
        explorer: images and weights.

    Attributes:
        address: URL to open in a browser.

    Raises:
        EnvironmentFault: Starlette or uvicorn is not installed, or no port is free.
    """

    def __init__(self, explorer: Explorer) -> None:
        try:
            import starlette.applications  # noqa: F401 - fails here, before a port is opened
            import uvicorn
        except ImportError as problem:
            missing = (problem.name or "a part of it").partition(".")[0]
            raise EnvironmentFault("explore", f"{missing} is not installed", INSTALL) from None
        try:
            self._socket = socket.create_server((LOOPBACK, 0))
        except OSError as problem:
            raise EnvironmentFault(LOOPBACK, problem.strerror or "has no free port", "stop another server") from None
        port, token = self._socket.getsockname()[1], secrets.token_urlsafe(24)
        self.address = f"http://{LOOPBACK}:{port}/{token}/"
        app = application(explorer, token, (f"{LOOPBACK}:{port}", f"localhost:{port}"))
        self._server = uvicorn.Server(
            # No access log: addresses hold the token.
            uvicorn.Config(app, log_level="error", access_log=False, server_header=False, lifespan="off", ws="none")
        )

    def serve(self) -> None:
        """Answer until Ctrl-C, SIGTERM or `stop`."""
        with self._socket, suppress(KeyboardInterrupt):  # the usual way to end it
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `serve` from another thread."""
        self._server.should_exit = True
