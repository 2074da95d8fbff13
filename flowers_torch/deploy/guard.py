"""What strangers may ask of the local server: checks of each request, and bounds of all of them together."""

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import math
import socket
import time
from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import urlsplit

import h11
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # until the headers of a request are there
BODY_SECONDS = 60.0  # until its body is there
SEND_SECONDS = 60.0  # until the client has taken the response
READ_BYTES = 64 << 10  # that a connection reads at a time
UNSENT_BYTES = 64 << 20  # of responses that clients have not taken yet, all together
MAX_HEADERS = 100  # fields
LOG_SECONDS = 60.0  # from one error in the log to the next

# The page loads only its own files, and no other page may frame it or learn its address.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def refusal(request: Request, names: Collection[str]) -> str:
    """Why a request is refused; empty if it may pass. `names` are allowed beside localhost and numeric hosts.

    A page of another site can make a browser send requests to this server: openly, with its own `Origin`, or
    by DNS rebinding, with its own name as `Host`. Numeric addresses cannot be rebound and are allowed, which
    Starlette's `TrustedHostMiddleware` cannot express.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    allowed = name in {"localhost", *(each.lower() for each in names)} or _is_numeric(name)
    if not allowed:  # guard: H06 name
        return "this host name is not allowed\n"
    if origin not in (None, f"http://{host}", f"https://{host}"):  # guard: H06 origin
        return "requests of other sites are refused\n"
    return ""


def host_names(host: str) -> set[str]:
    """Names of a server that listens at `host`; the machine's own names unless it is a loopback address."""
    if _is_numeric(host) and ipaddress.ip_address(host).is_loopback:
        return set()
    own = socket.gethostname()
    return {host, own, f"{own}.local"}


def _is_numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(eq=False)
class Body:
    """A request body in memory. Its clock runs until it is complete."""

    clock: asyncio.Timeout
    size: int = 0
    is_complete: bool = False


class Bodies:
    """Bounds the request bodies of all clients together to `max_bytes` bytes.

    The body that has been arriving longest gives way, so that slow clients cannot shut out fast ones.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held: dict[Body, None] = {}  # the oldest first

    @contextlib.contextmanager
    def hold(self) -> Iterator[Body]:
        """A new body, which counts within the context."""
        body = Body(asyncio.timeout(BODY_SECONDS))  # guard: H06 slow body
        self.held[body] = None
        try:
            yield body
        finally:
            self.held.pop(body, None)

    def counting(self, request: Request, body: Body, max_bytes: int) -> Receive:
        """The `receive` of a request, which raises status 413 as soon as its body exceeds `max_bytes`.

        If the request states its length, it raises immediately, before anything is read.
        """
        detail = f"a request may hold {max_bytes >> 20} MB; send fewer or smaller photos"
        # The connection stays open: a client that is cut off would see no response.
        too_large = HTTPException(413, detail)
        if int(request.headers.get("content-length", 0)) > max_bytes:  # a number, as uvicorn has verified
            raise too_large

        async def counted() -> Message:
            message = await request.receive()
            body.size += len(message.get("body", b""))
            if body.size > max_bytes:  # guard: H06 body
                raise too_large
            while sum(each.size for each in self.held) > self.max_bytes:  # guard: H06 bodies
                slowest = next((each for each in self.held if not each.is_complete), body)
                self.held.pop(slowest, None)
                if slowest is body:
                    raise TimeoutError
                slowest.clock.reschedule(0)
            return message

        return counted


class Connection(H11Protocol):
    """A connection with the bounds that uvicorn has no settings for.

    uvicorn's own `limit_concurrency` refuses requests while too many connections are open, even if these are idle.
    Here, the connection that has been waiting longest for its client gives way to a new one.
    """

    clock: asyncio.TimerHandle | None = None
    since = 0.0  # when the clock was started

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.max_size = READ_BYTES
        self.limit_concurrency = None
        self.watch()
        if len(self.connections) > (self.config.limit_concurrency or math.inf):  # guard: H06 connections
            waiting: Any = [each for each in self.connections if each.waits_for_client()]  # type: ignore[union-attr]
            slowest = min(waiting, key=lambda each: each.since)
            self.connections.discard(slowest)
            slowest.transport.abort()

    def waits_for_client(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def watch(self) -> None:
        """Restarts the clock of what the client has to do next: take its response, or send a request."""
        self.stop_clock()
        self.since = self.loop.time()
        if self.flow.write_paused:
            self.clock = self.loop.call_later(SEND_SECONDS, self.transport.abort)  # guard: H06 slow reader
        elif self.cycle is None or self.cycle.response_complete:
            self.clock = self.loop.call_later(HEADER_SECONDS, self.transport.abort)  # guard: H06 slow headers

    def stop_clock(self) -> None:
        if self.clock:
            self.clock.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.stop_clock()

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        try:
            super().data_received(data)
        except h11.ProtocolError:  # guard: H07 protocol
            self.transport.abort()  # for example, a body that becomes invalid behind its response
        if self.cycle is not cycle:
            self.watch()
            if len(self.headers) > MAX_HEADERS:  # guard: H06 headers
                self.transport.abort()  # each takes 100 times its bytes

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        if sum(each.transport.get_write_buffer_size() for each in self.connections) > UNSENT_BYTES:  # guard: H06 unsent
            self.transport.abort()
        self.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.watch()


class Sparing(logging.Filter):
    """Passes one error a minute, so that no attack fills the disk with the log."""

    next = 0.0

    def filter(self, _: logging.LogRecord) -> bool:
        is_due = time.monotonic() >= self.next
        if is_due:
            self.next = time.monotonic() + LOG_SECONDS
        return is_due  # guard: H06 log
