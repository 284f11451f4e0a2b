"""A model hub of one process: as much of its HTTP as an upload of a folder speaks, kept in memory.

Written against what huggingface_hub sends: whoami, create, info, preupload, the batch of LFS, a PUT
for every large file, one commit of newline-delimited JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "fake" * 8
_COMMIT = "0" * 40


class FakeHub:
    """What was asked for, and the repositories.

    Args:
        requests: (method, path, headers) in order.
        repos: by id, the files by path.
        private: the ids that were made private.
        cards: those that were checked before a commit.
        refuses: the status of every answer to a commit, where set.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.cards: list[str] = []
        self.large: dict[str, bytes] = {}
        self.refuses: int | None = None
        self.address = ""

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON for one request."""
        route = path.split("?")[0]
        if method == "PUT":
            self.large[route.removeprefix("/large/")] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": f"Invalid token {token}"}
        if route == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "orgs": [], "auth": {}}
        if route == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if route == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/([\w/.-]+)\.git/info/lfs/objects/batch", route):
            return 200, self._batch(json.loads(body))
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/.*)?", route):
            return self._model(found[1], (found[2] or "").split("/"), body)
        return 404, {"error": f"no {route}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.address}/{name}"}
        if name in self.repos:
            return 409, {"error": "You already created this model repo", **url}
        if not name.startswith("me/"):
            return 403, {"error": "You don't have the rights to create a model there"}
        self.repos[name] = {".gitattributes": b""}
        if asked.get("private") or asked.get("visibility") == "private":
            self.private.add(name)
        return 200, {**url, "name": name, "id": "1"}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = [
            {**one, "authenticated": True, "actions": {
                "upload": {"href": f"{self.address}/large/{one['oid']}", "header": {}}
            }}
            for one in asked["objects"]
        ]  # fmt: skip
        return {"transfer": "basic", "objects": upload}

    def _model(self, repo: str, what: list[str], body: bytes) -> tuple[int, Any]:
        files = self.repos.get(repo)
        if files is None:
            return 404, {"error": "Repository not found"}
        if what[1:2] == ["preupload"]:
            modes = [
                {"path": one["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            return 200, {"files": modes}
        if what[1:2] == ["commit"]:
            if self.refuses:
                return self.refuses, {"error": "Invalid card"}
            self._commit(files, body)
            return 200, {"commitOid": _COMMIT, "commitUrl": f"{self.address}/{repo}/commit/1"}
        if what[1:2] == ["tree"]:
            return 200, [
                {"type": "file", "path": path, "size": len(raw), "oid": "0"}
                for path, raw in files.items()
            ]
        if what in ([""], ["", "revision", "main"]):
            siblings = [{"rfilename": path} for path in files]
            return 200, {"id": repo, "modelId": repo, "sha": _COMMIT, "siblings": siblings}
        return 404, {"error": f"no {'/'.join(what)}"}

    def _commit(self, files: dict[str, bytes], body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                raw = self.large[value["oid"]]
                assert hashlib.sha256(raw).hexdigest() == value["oid"]
                files[value["path"]] = raw
            elif line["key"] == "deletedFile":
                del files[value["path"]]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers on this machine until the block ends."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            hub.requests.append((self.command, self.path, dict(self.headers)))
            token = self.headers.get("authorization", "")
            status, content = hub.answer(self.command, self.path, token, body)
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            if status == 404:
                self.send_header("x-error-code", "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
