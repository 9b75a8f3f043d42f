"""A model hub on loopback: enough of the Hugging Face protocol to download, or to be refused.

It serves the files of one folder as one repository, asks for a token where the repository is gated,
and keeps what it was asked for. Not a test itself; `test_hub.py` runs it.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Asked:
    """One request that reached the hub."""

    method: str
    path: str
    token: str | None


@dataclass
class HubServer:
    """One repository, and who may read it."""

    folder: Path
    repository: str = "meta-llama/Tiny"
    known_tokens: frozenset[str] = frozenset({"hf_right", "hf_stranger"})
    """Tokens of accounts that exist."""
    allowed_tokens: frozenset[str] = frozenset({"hf_right"})
    """Tokens of accounts that accepted the licence."""
    gated: bool = True
    endpoint: str = ""
    asked: list[Asked] = field(default_factory=list)

    @property
    def tokens(self) -> set[str | None]:
        """Every token that was sent; None where there was none."""
        return {request.token for request in self.asked}

    @property
    def files(self) -> list[str]:
        """Names of the files that were asked for."""
        marker = f"/resolve/{COMMIT}/"
        return [r.path.split(marker, 1)[1] for r in self.asked if marker in r.path]


@contextmanager
def serving(hub: HubServer) -> Iterator[HubServer]:
    """`hub` on a free port; its `endpoint` says where."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self) -> None:  # noqa: PLR0911
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.asked.append(Asked(self.command, path, token))
        api, files = f"/api/models/{self.hub.repository}", f"/{self.hub.repository}/resolve/"
        if token is not None and token not in self.hub.known_tokens:
            said = "Invalid credentials in Authorization header"
            return self._refuse(401, {"X-Error-Message": said})
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            return self._json(self._info())
        if path == f"{api}/auth-check":
            return self._refuse_gated(token) if self._closed(token) else self._json({})
        if path == f"{api}/tree/{COMMIT}":
            return self._json(list(self._tree()))
        if path.startswith(f"{files}{COMMIT}/"):
            name = path.removeprefix(f"{files}{COMMIT}/")
            return self._refuse_gated(token) if self._closed(token) else self._file(name)
        if path.startswith((api, files)):
            return self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        # The hub does not tell a stranger whether a repository exists.
        return self._refuse(404 if token else 401, {"X-Error-Code": "RepoNotFound"})

    def _closed(self, token: str | None) -> bool:
        return self.hub.gated and token not in self.hub.allowed_tokens

    def _refuse_gated(self, token: str | None) -> None:
        self._refuse(403 if token else 401, {"X-Error-Code": "GatedRepo"})

    def _names(self) -> list[str]:
        folder = self.hub.folder
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    def _info(self) -> dict[str, Any]:
        return {
            "id": self.hub.repository,
            "sha": COMMIT,
            "gated": "manual" if self.hub.gated else False,
            "private": False,
            "siblings": [{"rfilename": name} for name in self._names()],
        }

    def _tree(self) -> Iterator[dict[str, Any]]:
        for name in self._names():
            data = (self.hub.folder / name).read_bytes()
            yield {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}

    def _file(self, name: str) -> None:
        data = (self.hub.folder / name).read_bytes()
        self._send(200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, b'{"error": "refused"}', {"Content-Type": "application/json"} | headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
