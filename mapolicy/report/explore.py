"""A local page where one picks an image and a transformation, and sees image, weight and rank at once.

It is for the one who started it: the server listens on loopback alone, every address starts with a random token, and
requests under another host's name (DNS rebinding) are turned away. Nothing is written.
"""

import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from ..data.splits import Split
from ..errors import EnvironmentFault, MapolicyError, UsageError
from ..policy.sampler import TransformationSampler
from ..runtime.random import generator
from ..runtime.sanitize import printable
from ..transforms.parse import parse_transformations, spelled
from ..transforms.space import HAS_MAGNITUDE, OPERATION_NAMES
from ..transforms.transformation import Transformation
from .page import environment, inlined, png_address, script_hash
from .sample_weights import SampleWeights, relative_weights
from .samples import chosen_images

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = "127.0.0.1"
IMAGES, AT_ONCE = 240, 24  # to choose from, and on one screen
REFERENCE = 128  # samples of the batch that weights are relative to: a training batch's
LARGEST_PICTURE = 512  # pixels of a side
INSTALL = "pip install 'mapolicy[explore]'"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Explorer:
    """Images of a bundle's data set, and what the policy gives to them. Safe from several threads.

    Weights are relative to a batch as in training, images under transformations from p_jk, drawn once.

    Args:
        sample_weights: of the bundle.
        split: whose images, a choice of `IMAGES`.
        seed: of the choice and of the batch.
    """

    def __init__(self, sample_weights: SampleWeights, split: Split, seed: int = 0) -> None:
        self._weighing, self._lock, self._seed, self._drawn = sample_weights, threading.Lock(), seed, 0
        self.classes = sample_weights.bundle.manifest.dataset.classes
        self._sampler = TransformationSampler(probabilities=sample_weights.bundle.probabilities)
        count = max(IMAGES, REFERENCE)
        positions = torch.randperm(len(split), generator=generator(seed, "explore", "images", 0))[:count]
        self._images, self._labels = chosen_images(split, positions)
        images = self._images[:REFERENCE]
        drawn = self._sampler.sample(len(images), generator(seed, "explore", "reference", 0)).to(sample_weights.device)
        self._reference = sample_weights.logits(sample_weights.augmented(images, drawn), drawn)
        self._images, self._labels = self._images[:IMAGES], self._labels[:IMAGES].cpu()

    def __len__(self) -> int:
        return len(self._images)

    def choice(self, start: int) -> list[dict[str, Any]]:
        """Up to `AT_ONCE` images from `start` on, each with its number, class and picture."""
        return [
            {
                "image": at,
                "class": printable(self.classes[int(self._labels[at])]),
                "picture": png_address(self._images[at].cpu()),
            }
            for at in range(max(start, 0), min(max(start, 0) + AT_ONCE, len(self)))
        ]

    def draw(self) -> dict[str, Any]:
        """A transformation from p_jk."""
        with self._lock:
            self._drawn += 1
            drawn = self._sampler.sample(1, generator(self._seed, "explore", "draw", self._drawn))
        return {
            "first": OPERATION_NAMES[int(drawn.first)],
            "second": OPERATION_NAMES[int(drawn.second)],
            "magnitude1": round(float(drawn.magnitude1), 1),
            "magnitude2": round(float(drawn.magnitude2), 1),
        }

    def weigh(self, image: int, text: str) -> dict[str, Any]:
        """An image under a transformation.

        Args:
            image: its number.
            text: the transformation (`notation`).

        Returns:
            `weight` and `rank` among the `of` samples of the batch and itself, `as_it_is` (the image's weight under
            Identity), `probability` (p_jk), the pictures `before` and `after`.

        Raises:
            UsageError: no such image, or not one transformation.
        """
        chosen = parse_transformations(text)
        if len(chosen) != 1:
            raise UsageError("transformations", f"there are {len(chosen)}, expected 1")
        if not 0 <= image < len(self):
            raise UsageError("image", f"{image} is not one of 0 to {len(self) - 1}")
        both = _with_identity(chosen).to(self._weighing.device)
        with self._lock:
            augmented = self._weighing.augmented(self._images[image].expand(2, -1, -1, -1), both)
            logits = self._weighing.logits(augmented, both)
        weight, as_it_is = relative_weights(logits, self._reference).tolist()
        before, after = self._images[image].cpu(), augmented[0].cpu()
        return {
            "transformation": spelled(chosen)[0],
            "class": printable(self.classes[int(self._labels[image])]),
            "weight": weight,
            "rank": 1 + int((self._reference > logits[0]).sum()),
            "of": len(self._reference) + 1,
            "as_it_is": as_it_is,
            "probability": float(self._sampler.probabilities[chosen.first, chosen.second]),
            "before": png_address(before, LARGEST_PICTURE),
            "after": png_address(after, LARGEST_PICTURE),
        }

    def page(self) -> str:
        """The page, which asks for the rest."""
        manifest = self._weighing.bundle.manifest
        operations = list(zip(OPERATION_NAMES, HAS_MAGNITUDE, strict=True))
        return (
            environment()
            .get_template("explore.html")
            .render(
                style=inlined("style.css"),
                script=inlined("explore.js"),
                dataset=manifest.dataset.name,
                digest=manifest.digest,
                operations=operations,
                reference=len(self._reference),
                images=len(self),
                at_once=AT_ONCE,
            )
        )


def _with_identity(chosen: Transformation) -> Transformation:
    identity = parse_transformations("Identity")
    return Transformation(
        *(torch.cat([getattr(part, name) for part in (chosen, identity)]) for name in chosen.__dataclass_fields__)
    )


def _policy() -> str:
    """The page's Content-Security-Policy."""
    script = inlined("explore.js")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {script_hash(script)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guard:
    """Lets through what has the token at the start of its path and one of our names as its host; ASGI middleware.

    Args:
        app: behind it.
        token: that every path starts with.
        hosts: names and ports under which the page may be asked for.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], token: str, hosts: Sequence[str]
    ) -> None:
        self._app, self._token, self._hosts = app, token.encode(), tuple(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
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
    """The web application.

    Args:
        explorer: what it shows.
        token, hosts: as of `Guard`.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    page = explorer.page()
    headers = {"content-security-policy": _policy()}

    # Not coroutines: these are run in threads, and the server goes on hearing.
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
        raise UsageError(name, f"{printable(text[:20])!r} is no number of an image")
    return int(text)


class Site:
    """The page at a random port of this machine, under a random token.

    Args:
        explorer: what it shows.

    Attributes:
        address: to open in a browser.

    Raises:
        EnvironmentFault: Starlette or uvicorn is not installed, or no port can be had.
    """

    def __init__(self, explorer: Explorer) -> None:
        try:
            import starlette.applications  # noqa: F401 - so that it is missed before a port is taken
            import uvicorn
        except ImportError as problem:
            missing = (problem.name or "a part of it").partition(".")[0]
            raise EnvironmentFault("explore", f"{missing} is not installed", INSTALL) from None
        try:
            self._socket = socket.create_server((LOOPBACK, 0))
        except OSError as problem:
            raise EnvironmentFault(LOOPBACK, problem.strerror or "has no port", "end another server") from None
        port, token = self._socket.getsockname()[1], secrets.token_urlsafe(24)
        self.address = f"http://{LOOPBACK}:{port}/{token}/"
        app = application(explorer, token, (f"{LOOPBACK}:{port}", f"localhost:{port}"))
        self._server = uvicorn.Server(
            # No access log: addresses hold the token.
            uvicorn.Config(app, log_level="error", access_log=False, server_header=False, lifespan="off", ws="none")
        )

    def serve(self) -> None:
        """Answer until Ctrl-C, SIGTERM or `stop`."""
        with self._socket, suppress(KeyboardInterrupt):  # which is how one ends it
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `serve` from another thread."""
        self._server.should_exit = True
