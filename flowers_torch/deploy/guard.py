"""What every request to the local server passes first: whom it may come from, how large it may be."""

import ipaddress
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page loads nothing but its own files, and no other page may frame it or learn where it is.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware that turns away requests from other sites and sets the headers of every response.

    A page of another site can make a browser send requests here: under a name of its own that it points to
    this machine (DNS rebinding), which shows in `Host`, or openly, which shows in `Origin`. Addresses in
    numbers cannot be pointed anywhere, so they are no risk.

    Args:
        app: What is guarded.
        names: Host names that the server goes by, besides localhost and addresses in numbers.
        seen: Called with path and status of each response.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], seen: Callable[[str, int], None]) -> None:
        self.app = app
        self.names = {"localhost", *(name.lower() for name in names)}
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
                self.seen(scope["path"], message["status"])
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.knows(host):  # guard: H06 name
            refused = PlainTextResponse("this server does not go by that name\n", 403)
            await refused(scope, receive, send_guarded)
        elif origin not in (None, f"http://{host}", f"https://{host}"):  # guard: H06 origin
            refused = PlainTextResponse("requests of other sites are refused\n", 403)
            await refused(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def knows(self, host: str) -> bool:
        """Whether a `Host` header names this server."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or _is_address(name)


def host_names(host: str) -> set[str]:
    """Names under which a server at `host` may be called: on the network also the machine's own."""
    if _is_address(host) and ipaddress.ip_address(host).is_loopback:
        return set()
    own = socket.gethostname()
    return {host, own, f"{own}.local"}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def limited(scope: Scope, receive: Receive, most: int) -> Receive:
    """`receive` that ends a request whose body is larger than `most` bytes, before more of it is read.

    Raises:
        HTTPException: 413, at once where the request states its length.
    """
    stated = Headers(scope=scope).get("content-length", "0")
    what = f"a request may hold {most >> 20} MB; send fewer or smaller photos"
    too_large = HTTPException(413, what, {"Connection": "close"})  # or the rest would be read all the same
    if stated.isdigit() and int(stated) > most:
        raise too_large
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:  # guard: H06 body
            raise too_large
        return message

    return counted
