"""The server of a page on this machine: what it answers, and what it refuses."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowers_torch.deploy.local_page import MAX_BODY, LocalPage, picture_maker
from flowers_torch.errors import ResourceError, UsageError


class Served:
    """A page whose photos are two files: a readable one, and one that holds no image."""

    def __init__(self, folder: Path) -> None:
        files = [folder / "1.png", folder / "2.png"]
        Image.new("RGB", (900, 30), (200, 10, 10)).save(files[0])
        files[1].write_bytes(b"secret text")
        self.decided: list[dict[str, Any]] = []
        assets = {"": (b"<p>page</p>", "text/html; charset=utf-8"), "page.js": (b"1", "text/javascript")}
        values = {"state": lambda: {"issues": []}, "similar/": self.similar}
        self.page = LocalPage(assets, values, 2, picture_maker(files.__getitem__), self.decide)
        self.host, port = self.page.server_address[:2]
        self.port, self.token = int(port), self.page.token

    def similar(self, number: int) -> dict[str, int]:
        if number > 4:
            raise UsageError("there is no issue", "load again")
        return {"number": number}

    def decide(self, request: dict[str, Any]) -> dict[str, Any]:
        self.decided.append(request)
        return {"saved": True}

    def ask(
        self, path: str, body: bytes | None = None, method: str = "", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        given = {"Host": f"127.0.0.1:{self.port}"}
        given |= {"Content-Type": "application/json"} if body is not None else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, body, given)
        response = connection.getresponse()
        found = response.status, response.read(), dict(response.getheaders())
        connection.close()
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("page"))
    thread = threading.Thread(target=made.page.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.page.shutdown()
    made.page.server_close()
    thread.join()


def test_it_listens_on_this_machine_only_with_a_new_token_each_time(served: Served, tmp_path: Path) -> None:
    assert served.host == "127.0.0.1" and served.page.url == f"http://127.0.0.1:{served.port}/{served.token}/"
    other = Served(tmp_path)
    other.page.server_close()
    assert other.token != served.token and len(served.token) >= 24
    with pytest.raises(ResourceError, match=r"cannot listen at port .*fix: give another --port"):
        LocalPage({}, {}, 0, picture_maker(Path), dict, served.port)


def test_page_files_and_values(served: Served) -> None:
    status, content, headers = served.ask(f"/{served.token}/")
    assert (status, content) == (200, b"<p>page</p>")
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["Server"].strip() == ""
    assert served.ask(f"/{served.token}/page.js")[:2] == (200, b"1")
    assert json.loads(served.ask(f"/{served.token}/state")[1]) == {"issues": []}
    assert json.loads(served.ask(f"/{served.token}/similar/3")[1]) == {"number": 3}
    status, content, _ = served.ask(f"/{served.token}/similar/9")
    assert status == 400 and "there is no issue; fix: load again" in json.loads(content)["error"]


def test_photos_are_sent_as_new_pictures_and_never_as_files(served: Served) -> None:
    status, content, headers = served.ask(f"/{served.token}/photo/0/224")
    assert status == 200 and content.startswith(b"\xff\xd8") and headers["Content-Type"] == "image/jpeg"
    status, content, _ = served.ask(f"/{served.token}/photo/1/224")
    assert status == 400 and b"secret" not in content  # not an image


@pytest.mark.parametrize(
    "path",
    [
        "/", "/state", "/photo/0/224", "//state", "/wrong/state", "/{t}", "/{t}/photo/2/224", "/{t}/photo/0/4000",
        "/{t}/photo/-1/224", "/{t}/photo/0/224/..", "/{t}/../1.png", "/{t}/1.png", "/{t}/%2e%2e/1.png",
        "/{t}/photo/%d9%a0/224", "/{t}/page.js/", "/{t}/page.js?x", "/{t}/decide", "http://evil.example/{t}/state",
        "/{t}x/state", "/{t}/state/", "/{t}/state/3", "/{t}/state3", "/{t}/similar", "/{t}/similar/", "/\u00e9/state",
    ],
)  # fmt: skip
def test_nothing_else_is_answered(served: Served, path: str) -> None:
    path = "".join(c if c.isascii() else f"%{ord(c):02x}" for c in path.replace("{t}", served.token))
    assert served.ask(path)[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Host": "127.0.0.1"}, {"Host": ""},
        {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
    ],
)  # fmt: skip
def test_other_sites_are_refused_even_with_the_token(served: Served, headers: dict[str, str]) -> None:
    assert served.ask(f"/{served.token}/state", **headers)[0] == 403
    before = len(served.decided)
    assert served.ask(f"/{served.token}/decide", b"{}", **headers)[0] == 403
    assert len(served.decided) == before


def test_decisions_are_json_objects(served: Served) -> None:
    path, before = f"/{served.token}/decide", len(served.decided)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/jsonx"):
        assert served.ask(path, b'{"action": "keep"}', Content_Type=kind)[0] == 415
    for body in (b"", b"[]", b"1", b"{", b"\xff", b"[" * 9000):
        assert served.ask(path, body)[0] == 400
    assert served.ask(path, b" " * (MAX_BODY + 1))[0] == 413
    assert served.ask(f"/{served.token}/state", b"{}")[0] == 404
    assert served.ask(path, b"{}", "PUT")[0] == 501 and len(served.decided) == before
    origin = f"http://127.0.0.1:{served.port}"
    status, content, _ = served.ask(path, b'{"action": "keep"}', Origin=origin)
    assert status == 200 and json.loads(content) == {"saved": True} and served.decided[-1] == {"action": "keep"}
