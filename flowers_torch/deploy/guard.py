"""Checks that every request to the local server passes: its host, its origin and its size."""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

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


def limit_body(request: Request, max_bytes: int) -> Receive:
    """The `receive` of a request, which raises status 413 as soon as the body exceeds `max_bytes`.

    If the request states its length, it raises immediately, before anything is read.
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
