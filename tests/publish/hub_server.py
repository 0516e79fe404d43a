"""A model hub on the loopback interface: as much of its API as uploading a folder and downloading a snapshot need.

Small files come in the commit itself, `.safetensors` through the large-file protocol, as on the real one. `faults`
holds {part of a path: what goes wrong there}: a status code, or "cut" for a body that breaks off half way.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories in memory: {repo id: {"private": bool, "branches": {name: commit}, "commits": {commit: files}}}."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}
        self.faults: dict[str, int | str] = {}
        self.requests: list[str] = []
        self.address = ""

    def create(self, repo: str, *, private: bool = False) -> bool:
        """Make a repository with an empty first commit; return whether it is new."""
        if repo in self.repos:
            return False
        self.repos[repo] = {"private": private, "branches": {}, "commits": {}}
        self.commit(repo, "main", {})
        return True

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        """Add files to a branch and return the commit."""
        record = self.repos[repo]
        before = record["commits"].get(record["branches"].get(branch), {})
        content = {**before, **files}
        digest = hashlib.sha1(f"{len(record['commits'])}{sorted(content)}".encode())
        for name in sorted(content):
            digest.update(content[name])
        record["commits"][digest.hexdigest()] = content
        record["branches"][branch] = digest.hexdigest()
        return digest.hexdigest()

    def resolve(self, repo: str, revision: str) -> str | None:
        """Return the commit of a branch or commit name."""
        record = self.repos[repo]
        return record["branches"].get(revision, revision if revision in record["commits"] else None)


class Handler(BaseHTTPRequestHandler):
    """Speaks the hub's API."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        fault = next((what for part, what in self.hub.faults.items() if part in path), None)
        if isinstance(fault, int):
            self._json({"error": "fault"}, fault)
            return
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                action(self, *match.groups(), body)
                return
        self._json({"error": f"no route {path}"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, tree: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(tree).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _known(self, repo: str, revision: str | None = None) -> bool:
        """Answer 404 as the hub does, and return whether the repository and its revision exist."""
        if repo not in self.hub.repos:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return False
        if revision is not None and self.hub.resolve(repo, revision) is None:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return False
        return True

    def create(self, body: bytes) -> None:
        wish = json.loads(body)
        repo = f"{wish['organization']}/{wish['name']}"
        private = bool(wish.get("private")) or wish.get("visibility") == "private"
        new = self.hub.create(repo, private=private)
        self._json({"url": f"{self.hub.address}/{repo}", "name": repo}, 200 if new else 409)

    def branch(self, repo: str, name: str, _: bytes) -> None:
        if self._known(repo):
            branches = self.hub.repos[repo]["branches"]
            status = 409 if name in branches else 201
            branches.setdefault(name, branches["main"])
            self._json({}, status)

    def check_card(self, _: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str, body: bytes) -> None:
        if self._known(repo, revision):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})

    def large_batch(self, _: str, body: bytes) -> None:
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.hub.address}/large/{item['oid']}", "header": {}}},
            }
            for item in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def large_put(self, oid: str, body: bytes) -> None:
        sound = hashlib.sha256(body).hexdigest() == oid
        if sound:
            self.hub.large[oid] = body
        self._json({}, 200 if sound else 400)

    def commit(self, repo: str, branch: str, body: bytes) -> None:
        if not self._known(repo, branch):
            return
        files = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        oid = self.hub.commit(repo, branch, files)
        self._json({"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid, "success": True})

    def info(self, repo: str, revision: str, _: bytes) -> None:
        if self._known(repo, revision):
            commit = self.hub.resolve(repo, revision)
            names = sorted(self.hub.repos[repo]["commits"][commit])
            self._json({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in names]})

    def tree(self, repo: str, revision: str, _: bytes) -> None:
        if self._known(repo, revision):
            files = self.hub.repos[repo]["commits"][self.hub.resolve(repo, revision)]
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in sorted(files.items())
            ]
            self._json(rows)

    def file(self, repo: str, revision: str, name: str, _: bytes) -> None:
        if not self._known(repo, revision):
            return
        commit = self.hub.resolve(repo, revision)
        content = self.hub.repos[repo]["commits"][commit].get(name)
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": str(commit)}
        if self.command == "GET" and self.hub.faults.get(name) == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self._send(content, 200, headers)


_REPO, _REST = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.check_card),
    ("POST", f"/api/models/{_REPO}/branch/{_REST}", Handler.branch),
    ("POST", f"/api/models/{_REPO}/preupload/{_REST}", Handler.preupload),
    ("POST", f"/api/models/{_REPO}/commit/{_REST}", Handler.commit),
    ("GET", f"/api/models/{_REPO}/revision/{_REST}", Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/{_REST}", Handler.tree),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Handler.large_batch),
    ("PUT", f"/large/{_REST}", Handler.large_put),
    ("GET HEAD", f"/{_REPO}/resolve/{_REST}/(.+)", Handler.file),
]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub on a free port of the loopback interface."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
