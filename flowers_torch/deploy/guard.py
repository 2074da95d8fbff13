"""Checks that every request to the local server passes: its host, its origin and its size."""

import ipaddress
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page loads only its own files, and no other page may frame it or learn its address.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware that refuses requests of other sites and sets the headers of every response.

    A page of another site can make a browser send requests to this server: openly, with its own `Origin`, or
    by DNS rebinding, with its own name as `Host`. Numeric addresses cannot be rebound and are allowed.

    Args:
        app: The guarded application.
        names: Allowed host names besides localhost and numeric addresses.
        on_response: Called with path and status of each response.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], on_response: Callable[[str, int], None]) -> None:
        self.app = app
        self.names = {"localhost", *(name.lower() for name in names)}
        self.on_response = on_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
                self.on_response(scope["path"], message["status"])
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.allows_host(host):  # guard: H06 name
            refused = PlainTextResponse("this host name is not allowed\n", 403)
            await refused(scope, receive, send_guarded)
        elif origin not in (None, f"http://{host}", f"https://{host}"):  # guard: H06 origin
            refused = PlainTextResponse("requests of other sites are refused\n", 403)
            await refused(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def allows_host(self, host: str) -> bool:
        """Whether a `Host` header names this server."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or _is_numeric(name)


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


def limit_body(scope: Scope, receive: Receive, max_bytes: int) -> Receive:
    """Wraps `receive` so that it fails as soon as the body exceeds `max_bytes`.

    Raises:
        HTTPException: 413, before anything is read if the request states its length.
    """
    length = Headers(scope=scope).get("content-length", "0")
    detail = f"a request may hold {max_bytes >> 20} MB; send fewer or smaller photos"
    too_large = HTTPException(413, detail, {"Connection": "close"})  # or the server would read the rest
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:  # guard: H06 body
            raise too_large
        return message

    return counted
