"""A hub on loopback: the part of the Hugging Face hub's HTTP interface that its client uses for models, in memory.

It knows repositories with commits, the preupload question, LFS by the batch protocol (no Xet), front matter checks,
redirects of large files to a storage host, tokens and private repositories. What a test changes of its behaviour is an
attribute.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".onnx", ".pt", ".bin")
TOKEN, STRANGER = "hf_owner", "hf_stranger"  # the second may read what is public, and write nothing


@dataclass
class Repository:
    """Commits, each with its files by name; the last one is ``main``."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self):
        return list(self.commits)[-1]

    def add(self, files):
        commit = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[commit] = files
        return commit

    def at(self, revision):
        return self.head if revision == "main" else revision if revision in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server; use it as a context.

    Attributes:
        repositories: By ``ORG/NAME``.
        seen: (method, path, token) of every request.
        truncated: Names of files of which only the first half is sent, as if it were all.
        cut: Names of files in the middle of which the connection ends, once.
        meanwhile: Called ahead of a commit, with the repository.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.large, self.seen = {}, {}, []
        self.truncated, self.cut, self.meanwhile = set(), set(), None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self):
        """Where large files are: another host to the client, as on the real hub, which must not see the token."""
        return f"http://localhost:{self.server_port}/storage"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def create(self, name, files=None, private=False):
        """A repository with these files, as of one commit."""
        repository = self.repositories[name] = Repository(private)
        repository.add({".gitattributes": b"*.safetensors filter=lfs\n"})
        if files:
            repository.add(dict(files))
        return repository


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self):
        path = unquote(urlsplit(self.path).path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.server.seen.append((self.command, path, self.token))
        self.body = self._read()
        if self.token not in (None, TOKEN, STRANGER):
            return self._fail(401, "Invalid credentials in Authorization header")
        for method, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                return handle(self, **match.groupdict())
        return self._fail(404, f"no such page: {self.command} {path}")

    def _read(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status, content=b"", headers=None, length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        if length is not None and length > len(content) and self.command != "HEAD":
            self.close_connection = True

    def _json(self, value, status=200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status, message, code=None):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **headers})

    def _repository(self, name):
        """The repository, or None after an answer that hides it."""
        found = self.server.repositories.get(name)
        if found is not None and (not found.private or self.token == TOKEN):
            return found
        self._fail(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return None

    def _may_write(self):
        if self.token == TOKEN:
            return True
        refusal = "You don't have the rights to write to this repository"
        self._fail(403, refusal) if self.token else self._fail(401, "Unauthorized")
        return False

    def create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self._may_write():
            return
        if name in self.server.repositories:
            self._fail(409, "You already created this model repo")
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.server.create(name, private=private)
        self._json({"url": f"{self.server.url}/{name}"})

    def info(self, name, revision="main"):
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            self._fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return
        files = [{"rfilename": file} for file in sorted(repository.commits[commit])]
        self._json({"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": files})

    def validate(self):
        content = json.loads(self.body)["content"]
        parts = content.split("---\n")
        values = yaml.safe_load(parts[1]) if content.startswith("---\n") and len(parts) > 2 else None
        fault = None if isinstance(values, dict) and values.get("pipeline_tag") else "the front matter has no task"
        self._json({"errors": [{"message": fault}] if fault else [], "warnings": []}, 400 if fault else 200)

    def preupload(self, name, revision):
        if self._repository(name) is None or not self._may_write():
            return
        files = json.loads(self.body)["files"]
        modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"} for f in files]
        self._json({"files": [mode | {"shouldIgnore": False, "oid": None} for mode in modes]})

    def batch(self, name):
        if not self._may_write():
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.storage}/{wanted['oid']}"}
            verify = {"href": f"{self.server.url}/{name}.git/verify"}
            known = {} if wanted["oid"] in self.server.large else {"actions": {"upload": upload, "verify": verify}}
            objects.append({"oid": wanted["oid"], "size": wanted["size"], **known})
        self._json({"transfer": "basic", "objects": objects})

    def store(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self._send(200)

    def verify(self, name):
        said = json.loads(self.body)
        found = self.server.large.get(said["oid"])
        self._json({}) if found is not None and len(found) == said["size"] else self._fail(404, "not stored")

    def commit(self, name, revision):
        repository = self._repository(name)
        if repository is None or not self._may_write():
            return
        if self.server.meanwhile is not None:
            self.server.meanwhile(repository)
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, repository.head):
            self._fail(412, "A commit has happened since")
            return
        files = dict(repository.commits[repository.head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                del files[value["path"]]
        oid = repository.add(files)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def resolve(self, name, revision, file):
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.at(revision)
        if commit is None:
            self._fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return
        content = repository.commits[commit].get(file)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit}
            self._send(404, b"", headers)
            return
        headers = {"X-Repo-Commit": commit}
        if file.endswith(LARGE):
            oid = hashlib.sha256(content).hexdigest()
            self.server.large[oid] = content
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            at = f"{self.server.storage}/{oid}?name={file}"
            self._send(302, b"", headers | linked | {"Location": at})
            return
        short = file in self.server.truncated and self.command == "GET"
        sent = content[: len(content) // 2] if short else content
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self._send(200, sent, headers | {"ETag": f'"{etag}"'})

    def load(self, oid):
        content = self.server.large[oid]
        name = urlsplit(self.path).query.removeprefix("name=")
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        asked = content[: len(content) // 2] if name in self.server.truncated else content[start:]
        sent = asked[: len(asked) // 2] if name in self.server.cut else asked
        self.server.cut.discard(name)
        part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self._send(206 if start else 200, sent, {"ETag": f'"{oid}"'} | part, length=len(asked))


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/(?P<revision>.+)", _Handler.info),
    ("POST", f"/api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", rf"/{_NAME}\.git/verify", _Handler.verify),
    ("PUT", "/storage/(?P<oid>[0-9a-f]{64})", _Handler.store),
    ("GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})", _Handler.load),
    ("GET HEAD", f"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
)
