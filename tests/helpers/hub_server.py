"""A server on loopback that speaks what huggingface_hub's client, 1.x and 2.x, asks of a hub; and one for plain files.

The routes are those that the client's source calls: resolve (HEAD and GET, with ranges), repos/create, validate-yaml,
preupload, the LFS batch with its upload, commit.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: files by commit by name.
        refs: commit by branch, by repository.
        log: "METHOD path" of every request.
        faults: (method and start of a path) to what is done instead: an HTTP status with an error code, "cut" for half
            a body, or a function that is called once the answer is known; each used as often as it is listed.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[str] = []
        self.tokens: set[str | None] = set()
        self.faults: list[tuple[str, object]] = []

    def clear(self) -> None:
        for state in (self.repositories, self.refs, self.private, self.large, self.log, self.tokens, self.faults):
            state.clear()

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        refs, commits = self.refs.setdefault(name, {}), self.repositories.setdefault(name, {})
        files = {**commits.get(refs.get(branch, ""), {}), **files}
        commit = hashlib.sha1(repr((len(commits), sorted(files.items()))).encode()).hexdigest()
        commits[commit], refs[branch] = files, commit
        return commit


@contextmanager
def serving(server: HubServer) -> Iterator[HubServer]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.log.append(f"{method} {path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        fault = next((entry for entry in self.server.faults if f"{method} {path}".startswith(entry[0])), None)
        if fault is not None:
            self.server.faults.remove(fault)
            if isinstance(fault[1], tuple):
                status, headers = fault[1]
                return self._send(status, b"", headers)
        parts = path.strip("/").split("/")
        if "resolve" in parts and method in ("HEAD", "GET"):
            return self._resolve(method, parts, None if fault is None else fault[1])
        if parts[0] == "plain":
            return self._send(200, self.server.large["/".join(parts[1:])], cut=fault is not None)
        if method == "PUT":
            self.server.large[parts[-1]] = body
            return self._send(200, b"")
        document = json.loads(body) if body and "ndjson" not in self.headers["Content-Type"] else None
        if parts[:2] == ["api", "models"] and len(parts) == 4 and method == "GET":
            name = "/".join(parts[2:])
            if name not in self.server.refs:
                return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return self._json({"id": name, "modelId": name, "siblings": [], "tags": []})
        if parts[:2] == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts[:3] == ["api", "repos", "create"]:
            name = f"{document['organization']}/{document['name']}"
            if name in self.server.refs:
                return self._json({"url": f"{self.server.address}/{name}"}, status=409)
            self.server.private[name] = document.get("visibility") == "private" or document.get("private") is True
            self.server.commit(name, {".gitattributes": b""})
            return self._json({"url": f"{self.server.address}/{name}"})
        if "preupload" in parts:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                    "shouldIgnore": False,
                }
                for file in document["files"]
            ]
            return self._json({"files": modes})
        if parts[-2:] == ["objects", "batch"]:
            actions = [
                {**entry, "actions": {"upload": {"href": f"{self.server.address}/upload/{entry['oid']}"}}}
                for entry in document["objects"]
            ]
            return self._json({"transfer": "basic", "objects": actions})
        if "commit" in parts:
            files = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
            name = "/".join(parts[2:4])
            commit = self.server.commit(name, files, parts[5])
            return self._json({"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit})
        return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _resolve(self, method: str, parts: list[str], fault: object) -> None:
        place = parts.index("resolve")
        name, revision, file = "/".join(parts[:place]), parts[place + 1], "/".join(parts[place + 2 :])
        if name not in self.server.refs:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        commit = self.server.refs[name].get(revision, revision)
        if commit not in self.server.repositories[name]:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": commit}
        if file not in self.server.repositories[name][commit]:
            return self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        content = self.server.repositories[name][commit][file]
        cut = fault == "cut"
        if callable(fault):
            fault()
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206, content[start:], headers, cut)
        return self._send(200, content, headers, cut, head=method == "HEAD")

    def _json(self, document: object, status: int = 200) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False, head: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and not head:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
