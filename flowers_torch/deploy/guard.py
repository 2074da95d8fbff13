"""Checks that every request to the local server passes: its host, its origin and its size."""

import ipaddress
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive

# The page loads only its own files, and no other page may frame it or learn its address.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard(BaseHTTPMiddleware):
    """Refuses requests of other sites and sets the headers of every response.

    A page of another site can make a browser send requests to this server: openly, with its own `Origin`, or
    by DNS rebinding, with its own name as `Host`. Numeric addresses cannot be rebound and are allowed, which
    Starlette's `TrustedHostMiddleware` cannot express.

    Args:
        app: The guarded application.
        names: Allowed host names besides localhost and numeric addresses.
        on_response: Called with path and status of each response.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], on_response: Callable[[str, int], None]) -> None:
        super().__init__(app)
        self.names = {"localhost", *(name.lower() for name in names)}
        self.on_response = on_response

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """The response of the application, or a refusal."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self.allows_host(host):  # guard: H06 name
            response: Response = PlainTextResponse("this host name is not allowed\n", 403)
        elif origin not in (None, f"http://{host}", f"https://{host}"):  # guard: H06 origin
            response = PlainTextResponse("requests of other sites are refused\n", 403)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        self.on_response(request.scope["path"], response.status_code)
        return response

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


def limit_body(request: Request, max_bytes: int) -> Receive:
    """The `receive` of a request, which fails as soon as the body exceeds `max_bytes`.

    Raises:
        HTTPException: 413, before anything is read if the request states its length.
    """
    detail = f"a request may hold {max_bytes >> 20} MB; send fewer or smaller photos"
    too_large = HTTPException(413, detail, {"Connection": "close"})  # or the server would read the rest
    if int(request.headers.get("content-length", 0)) > max_bytes:  # a number, as uvicorn has verified
        raise too_large
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:  # guard: H06 body
            raise too_large
        return message

    return counted
