"""`pack --push`: the client of the hub, unchanged, against a server on the loopback that answers as the hub does."""

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.cli import main


class FakeHub(http.server.ThreadingHTTPServer):
    """Keeps what is uploaded; `refusals` has a status for each path that is refused."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.refusals: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        if status := next((s for part, s in self.server.refusals.items() if part in path), 0):
            return self.respond({"error": "no"}, status)
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            return self.respond({"url": f"{self.server.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.respond({"errors": [], "warnings": []})
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return self.respond({"files": modes})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.respond(
                {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}/me/flowers/commit/0"}
            )
        return self.respond({"error": f"no {path}"}, 404)

    def do_GET(self) -> None:
        self.respond({"error": "nothing there"}, 404)

    def respond(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()
        thread.join()


def test_a_packed_folder_is_uploaded_as_it_is(small: Any, hub: FakeHub, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "packed"
    assert main(["pack", str(small.file), "--out", str(folder), "--push", "me/flowers"]) == 0
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [(made["name"], made.get("organization")) for made in hub.created] == [("flowers", "me")]
    assert "private" in json.dumps(hub.created[0])
    assert hub.tokens == {"Bearer hf_secret"}
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"push     {hub.url}/me/flowers" and "hf_secret" not in out
    hub.files.clear()
    assert main(["pack", str(small.file), "--out", str(folder), "--push", "me/flowers", "--public"]) == 0
    assert '"private": true' not in json.dumps(hub.created[1]) and '"visibility": "private"' not in json.dumps(
        hub.created[1]
    )
    assert len(hub.files) == 4


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("create", 401, "does not accept the token; fix: log in with hf auth login"),
        ("create", 403, "the token may not write there"),
        ("preupload", 404, "does not know the owner or the repository"),
        ("commit", 403, "the token may not write there"),
        ("commit", 400, "it answers 400"),
    ],
)
def test_refusals_are_one_line(
    part: str, status: int, message: str, small: Any, hub: FakeHub, tmp_path: Path, capsys: Any
) -> None:
    hub.refusals[part] = status
    assert main(["pack", str(small.file), "--out", str(tmp_path / "packed"), "--push", "me/flowers"]) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot upload to me/flowers at {hub.url}" in line and message in line and "hf_secret" not in line
    assert (tmp_path / "packed/model.safetensors").is_file()  # packed all the same


def test_without_token_name_or_network(small: Any, hub: FakeHub, monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    def pack(*words: str) -> tuple[int, str]:
        code = main(["pack", str(small.file), "--out", str(tmp_path / "packed"), *words])
        (line,) = capsys.readouterr().err.splitlines()
        return code, line

    for name in ("a/b/c", "flowers", "me/..", "me/flowers\x1b[31m", ""):
        code, line = pack("--push", name, *(["--public"] if not name else []))
        assert code == 2 and "\x1b" not in line and not (tmp_path / "packed").exists(), line
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, line = pack("--push", "me/flowers")
    assert code == 6 and "no token" in line and "HF_TOKEN" in line and not (tmp_path / "packed").exists()
    monkeypatch.undo()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    code, line = pack("--push", "me/flowers")
    assert code == 6 and "127.0.0.1:9" in line and "check the network" in line
