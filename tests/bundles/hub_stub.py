"""A model hub on 127.0.0.1: the part of the hub's HTTP API that pushing and pulling a repository take, with faults.

Repositories are kept in memory; a commit is a mapping of names to bytes. Files that end with .safetensors go through
the LFS endpoints, the others are inside the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlparse

TOKEN = "hf_" + "a1B2" * 9


class Hub:
    """`with Hub() as hub: ...`; `hub.files("me/rag")` is what a repository holds, `hub.fault` makes it fail."""

    def __init__(self):
        self.repos = {}  # name -> {"private": bool, "commits": [(sha, {path: bytes})]}
        self.objects = {}  # LFS: oid -> bytes
        self.requests = []  # (method, path, authorization, body)
        self.fault = None  # (method, part of the path, status, times): answer so instead; status 0 breaks off
        self.between = lambda: None  # called when files begin to come
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def files(self, name):
        return self.repos[name]["commits"][-1][1]

    def commit(self, name, files):
        sha = hashlib.sha1(repr((len(self.repos[name]["commits"]), sorted(files))).encode()).hexdigest()
        self.repos[name]["commits"].append((sha, files))
        return sha

    def create(self, name, private):
        self.repos[name] = {"private": private, "commits": []}
        self.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Authorization"), body))
        if (fault := self.hub.fault) and fault[0] == self.command and fault[1] in path:
            if fault[2]:
                return self.send(fault[2], {"error": "planned"})
            self.send_response(200)  # a length that is never reached
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
            return None
        if path.startswith("/lfs/"):
            self.hub.objects[path.removeprefix("/lfs/")] = body
            return self.send(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, {"error": "Invalid username or password."})
        words = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        name = "/".join(words[2:4]) if words[0] == "api" else "/".join(words[:2]).removesuffix(".git")
        if name not in self.hub.repos:
            return self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        rest = words[4:] if words[0] == "api" else words[2:]
        return self.repository(name, rest, body)

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            return self.send(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        self.hub.create(name, asked.get("visibility") == "private")
        return self.send(200, {"url": f"{self.hub.url}/{name}"})

    def repository(self, name, words, body):
        repo = self.hub.repos[name]
        if words[:1] == ["preupload"]:
            self.hub.between()
            asked = json.loads(body)["files"]
            mode = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in asked}
            files = [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None} for p, m in mode.items()]
            return self.send(200, {"files": files})
        if words[:2] == ["info", "lfs"]:
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.send(200, {"transfer": "basic", "objects": objects})
        if words[:1] == ["commit"]:
            return self.commit(name, [json.loads(line) for line in body.splitlines()])
        revision = words[1] if len(words) > 1 else "main"
        found = [c for c in repo["commits"] if revision in (c[0], "main")]
        if not found:
            return self.send(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
        sha, files = found[-1]
        if words[:1] == ["resolve"]:
            return self.resolve(sha, files.get("/".join(words[2:])))
        if words[:1] == ["tree"]:
            oid = {path: hashlib.sha1(data).hexdigest() for path, data in files.items()}
            return self.send(
                200, [{"type": "file", "path": p, "size": len(d), "oid": oid[p]} for p, d in files.items()]
            )
        return self.send(
            200,
            {
                "id": name,
                "modelId": name,
                "sha": sha,
                "private": repo["private"],
                "siblings": [{"rfilename": path} for path in files],
                "tags": [],
            },
        )

    def resolve(self, sha, data):
        if data is None:
            return self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        return None

    def commit(self, name, lines):
        head, *changes = lines
        sha, files = self.hub.repos[name]["commits"][-1]
        if head["value"].get("parentCommit") not in (None, sha):
            return self.send(412, {"error": "the branch has moved"})
        files = dict(files)
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            else:
                del files[value["path"]]
        sha = self.hub.commit(name, files)
        return self.send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def send(self, status, content, headers=None):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
