"""A page for the person at this machine, on the standard library's HTTP server.

    GET  /TOKEN/              the page
    GET  /TOKEN/NAME          its other files and values, by exact name
    GET  /TOKEN/photo/3/640   photo number 3 with a longer side of 640 pixels, as a new JPEG
    POST /TOKEN/decide        a JSON object in, a JSON object out

No request names a file: photos are numbers, and everything else is looked up in a table. Other programs and other web
pages do not know the token; a page of another site that guesses the port is refused by its `Host` or `Origin`.
"""

import functools
import io
import json
import re
import secrets
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from flowers_torch.data.images import load_image
from flowers_torch.data.value_range import Range
from flowers_torch.errors import FlowersError, ResourceError, UsageError, printable
from flowers_torch.files.atomic import to_json

SIDES = (224, 800)  # longer sides of photos that can be requested, pixels
CACHED_PICTURES = 400
MAX_BODY = 16 << 10  # bytes
SECONDS = 30.0  # for a client to send its request
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Values = dict[str, Any]


def picture_maker(file_of: Callable[[int], Path], value_range: Range = ()) -> Callable[[int, int], bytes]:
    """Makes JPEGs of photos by number and longer side, two at a time, and remembers the latest ones.

    The function that it returns raises a `DataError` for a photo that cannot be read.
    """
    places = threading.Semaphore(2)  # decoding takes memory

    @functools.lru_cache(CACHED_PICTURES)
    def picture(number: int, side: int) -> bytes:
        with places:
            image = load_image(file_of(number), at_least=side, value_range=value_range)
            image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=85)  # a new file: without the metadata of the photo
        return buffer.getvalue()

    return picture


class LocalPage(ThreadingHTTPServer):
    """The server. `url` is the address of the page; `serve_forever` answers until `shutdown` or Ctrl-C.

    Args:
        files: Content and MIME type of each name below the token; the page itself is "".
        values: JSON values of names, computed for each request. Behind a name that ends in a slash stands a number,
            which the function gets.
        images: Number of photos.
        picture: From `picture_maker`.
        decide: Gets the JSON object of a POST; a `FlowersError` becomes status 400 with its text.
        port: 0 for a free one.

    Raises:
        ResourceError: the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = False  # on Windows it would let another program take over the port

    # Each argument is a table or function that answers one kind of request.
    def __init__(
        self,
        files: Mapping[str, tuple[bytes, str]],
        values: Mapping[str, Callable[..., Any]],
        images: int,
        picture: Callable[[int, int], bytes],
        decide: Callable[[Values], Values],
        port: int = 0,
    ) -> None:
        self.files, self.values, self.images, self.picture, self.decide = files, values, images, picture, decide
        self.token = secrets.token_urlsafe(18)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            what = f"cannot listen at port {port}: {error.strerror if isinstance(error, OSError) else error}"
            raise ResourceError(what, "give another --port, or 0") from error
        self.hosts = {f"{name}:{self.server_address[1]}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would look up the machine's name, which can take long
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection is not an error; anything else is printed on one line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"flowers-torch: the page failed: {printable(error)}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: LocalPage
    timeout = SECONDS
    server_version = sys_version = ""

    def do_GET(self) -> None:
        name = self._name()
        if name is None:
            return
        picture = re.fullmatch(r"photo/([0-9]{1,9})/([0-9]{1,4})", name)
        value = re.fullmatch(r"([a-z]+/?)([0-9]{0,9})", name)
        if name in self.server.files:
            self._send(*self.server.files[name])
        elif picture and int(picture[1]) < self.server.images and int(picture[2]) in SIDES:
            self._reply(lambda: (self.server.picture(int(picture[1]), int(picture[2])), "image/jpeg"))
        elif value and value[1] in self.server.values and value[1].endswith("/") == bool(value[2]):
            numbers = [int(value[2])] if value[2] else []
            self._reply(lambda: _as_json(self.server.values[value[1]](*numbers)))
        else:
            self._refuse(404, "there is no such page")

    def do_POST(self) -> None:
        name = self._name()
        if name is None:
            return
        length = self.headers.get("Content-Length", "")
        if name != "decide":
            self._refuse(404, "there is no such page")
        elif self.headers.get_content_type() != "application/json":  # a form of another site cannot send it
            self._refuse(415, "only JSON is accepted")
        elif not length.isascii() or not length.isdigit() or int(length) > MAX_BODY:
            self._refuse(413, f"a request may hold {MAX_BODY} bytes")
        else:
            body = self.rfile.read(int(length))
            self._reply(lambda: _as_json(self.server.decide(_json_object(body))))

    def _name(self) -> str | None:
        """What is requested below the token; None if the request was refused."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        token, slash, name = self.path.removeprefix("/").partition("/")
        if host not in self.server.hosts:
            self._refuse(403, "this host name is not allowed")
        elif origin not in (None, f"http://{host}"):
            self._refuse(403, "requests of other sites are refused")
        elif not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(404, "there is no such page")
        else:
            return name
        return None

    def _reply(self, make: Callable[[], tuple[bytes, str]]) -> None:
        try:
            content = make()
        except FlowersError as error:
            self._refuse(400, str(error))
        else:
            self._send(*content)

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, reason: str) -> None:
        content, kind = _as_json({"error": reason})
        self._send(content, kind, status)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def _as_json(value: Any) -> tuple[bytes, str]:
    return to_json(value).encode(), "application/json"


def _json_object(body: bytes) -> Values:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError("the request is not a valid JSON object", "load the page again")
    return value
