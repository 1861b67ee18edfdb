"""A stand-in for the hub on loopback: repositories of files at one commit, spoken to by the real clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

COMMIT = "0123456789" * 4


class FakeHub:
    """Serves while it is open. `repositories` are files by path, by ORGANISATION/NAME; `gated` is shut."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]], gated: str | None = None) -> None:
        self.repositories = repositories
        self.gated = gated
        self.sent = 0
        """Bytes of answers, so far."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        """/api/datasets/O/N[/revision/R], /api/datasets/O/N/tree/R/FOLDER, /datasets/O/N/resolve/R/FILE."""
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        is_api = parts[0] == "api"
        if is_api or parts[0] == "datasets":
            del parts[0]
        if is_api:
            del parts[:1]
        name, verb, rest = "/".join(parts[:2]), "".join(parts[2:3]), "/".join(parts[4:])
        files = self.hub.repositories.get(name)
        if files is None:
            self._refuse("RepoNotFound")
        elif is_api and verb == "tree":
            self._say(_listed(files, rest, recursive="recursive=true" in url.query.lower()))
        elif is_api:
            self._say({"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
        elif name == self.hub.gated:
            self._refuse("GatedRepo", 401)
        elif rest in files:
            self._send(files[rest])
        else:
            self._refuse("EntryNotFound")

    def _say(self, answer: Any) -> None:
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str, status: int = 404) -> None:
        self._answer(status, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def _send(self, content: bytes) -> None:
        headers = {
            "ETag": f'"{sha1(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            self._answer(200, content, headers)
            return
        begin, end = wanted.removeprefix("bytes=").split("-")
        part = content[int(begin) : int(end) + 1 if end else None]
        span = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(content)}"
        self._answer(206, part, headers | {"Content-Range": span})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.hub.sent += len(body)
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def _listed(files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """What is in a folder, as the hub tells it."""
    before = f"{folder.strip('/')}/" if folder.strip("/") else ""
    found: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if path.startswith(before):
            name, _, deeper = path.removeprefix(before).partition("/")
            if deeper and not recursive:
                found[name] = {"type": "directory", "path": before + name, "oid": "0" * 40, "size": 0}
            else:
                oid = sha1(content).hexdigest()
                found[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
    return list(found.values())
