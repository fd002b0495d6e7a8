"""A web server on this machine for files, with as much of the Hub's protocol as huggingface_hub asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """What a server answers, and what it has been asked.

    Attributes:
        url: Address, without a slash at its end.
        files: Content of paths below it.
        repositories: Files of repositories of the Hub, by `user/name`, with one revision, `main`.
        gated: Repositories that need a token with access.
        statuses: Other answers to paths than their content.
        truncated: Paths whose content ends halfway.
        chunked: Paths whose size is not announced.
        serves_ranges: Whether parts of files are served.
        passing: Statuses that the next requests for parts get instead.
        requests: Method and path of all requests.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.statuses: dict[str, int] = {}
        self.truncated: set[str] = set()
        self.chunked: set[str] = set()
        self.serves_ranges = False
        self.passing: list[int] = []
        self.requests: list[tuple[str, str]] = []

    def find(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content of a path."""
        if path in self.statuses:
            return self.statuses[path], {}, b""
        if path in self.files:
            return 200, {}, self.files[path]
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repository, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
        if repository in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if repository not in self.repositories:
            return 401 if rest else 404, {"X-Error-Code": "RepoNotFound"}, b""
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = self.repositories[repository]
        if is_api:
            return 200, {}, json.dumps(_describe(files, rest[0])).encode()
        name = "/".join(rest[2:])
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        etag = hashlib.sha256(files[name]).hexdigest()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, files[name]


def _describe(files: dict[str, bytes], what: str) -> Any:
    if what == "tree":
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]
    return {"id": "user/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: Server

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.answers.requests.append((self.command, path))
        status, headers, content = self.answers.find(path)
        if self.answers.serves_ranges and status == 200 and "Range" in self.headers:
            status, content = self._part(content)
        is_chunked = path in self.answers.chunked
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not with_content:
            return
        sent = content[: len(content) // 2] if path in self.answers.truncated else content
        # A continued transfer gets nothing more.
        sent = b"" if "Range" in self.headers and path in self.answers.truncated else sent
        if is_chunked:
            sent = f"{len(sent):x}\r\n".encode() + sent + b"\r\n"
            sent += b"" if path in self.answers.truncated else b"0\r\n\r\n"
        self.wfile.write(sent)
        self.close_connection = self.close_connection or path in self.answers.truncated

    def _part(self, content: bytes) -> tuple[int, bytes]:
        if self.answers.passing:
            return self.answers.passing.pop(), b""
        start, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        return 206, content[start : last + 1]

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server while the block runs."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        handler.answers = server = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def point_hub_to(url: str, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub in this process use a server and a cache, as HF_ENDPOINT and HF_HUB_CACHE do for new ones."""
    old = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(old, url)
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # Failed transfers are repeated after a while.
    monkeypatch.setattr("time.sleep", lambda _: None)
