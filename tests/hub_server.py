"""A model hub on this machine: an HTTP server with the few addresses that huggingface_hub asks, and folders of commits."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

PIPELINES = (
    "fill-mask",
    "feature-extraction",
    "image-classification",
    "image-feature-extraction",
    "multiple-choice",
    "question-answering",
    "text-classification",
    "text-generation",
    "token-classification",
    "zero-shot-image-classification",
)
TOKEN = "hf_of_the_owner"


class Hub:
    """Repositories as lists of commits; a commit is (hash, files by name). ``asked`` has every request."""

    def __init__(self):
        self.repositories, self.asked, self.private = {}, [], set()

    def commit(self, name, revision, files):
        branch = self.repositories[name].setdefault(revision, [])
        text = f"{name} {revision} {len(branch)}"
        branch.append((hashlib.sha1(text.encode()).hexdigest(), files))
        return branch[-1][0]

    def find(self, name, revision):
        """The commit of a branch, or of a hash."""
        branches = self.repositories[name]
        if revision in branches:
            return branches[revision][-1]
        return next((one for branch in branches.values() for one in branch if one[0] == revision), None)


def validated(card):
    """What a hub says of a card: text where it expects text, and a task that it knows."""
    front, errors = yaml.safe_load(card.split("---")[1]), []
    for key in ("license", "library_name", "pipeline_tag", "base_model"):
        if not isinstance(front.get(key, ""), str):
            errors.append({"message": f"{key} must be a string"})
    if front.get("pipeline_tag", "text-generation") not in PIPELINES:
        errors.append({"message": "unknown pipeline_tag"})
    if not all(isinstance(tag, str) for tag in front.get("tags", [])):
        errors.append({"message": "tags must be strings"})
    return {"errors": errors, "warnings": []}


class Handler(BaseHTTPRequestHandler):
    """One request; ``server.hub`` holds what there is."""

    def log_message(self, *_):
        pass

    def answer(self, status=200, body=None, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code, status=404):
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def handle_request(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.command == "POST" and not owner:
            return self.refuse("Unauthorized", 401)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(body=validated(json.loads(body)["content"]))
        found = re.fullmatch(r"/(?:api/models/)?([\w.-]+/[\w.-]+)/(\w+)/([^/]+)(?:/(.+))?", path)
        if found is None or found[1] not in hub.repositories or (found[1] in hub.private and not owner):
            return self.refuse("RepoNotFound", 404 if owner else 401)
        return getattr(self, f"do_{found[2]}")(*found.group(1, 3, 4), body)

    do_GET = do_HEAD = do_POST = handle_request

    def create(self, wanted):
        hub = self.server.hub
        name = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
        if name in hub.repositories:
            return self.answer(409, {"url": f"{self.server.address}/{name}"})
        hub.repositories[name] = {}
        hub.commit(name, "main", {".gitattributes": b""})
        if wanted.get("private") or wanted.get("visibility") == "private":
            hub.private.add(name)
        return self.answer(body={"url": f"{self.server.address}/{name}"})

    def do_branch(self, name, branch, _, __):
        self.server.hub.repositories[name].setdefault(branch, [self.server.hub.find(name, "main")])
        self.answer()

    def do_preupload(self, name, revision, _, body):
        files = [
            dict(path=one["path"], uploadMode="regular", shouldIgnore=False)
            for one in json.loads(body)["files"]
        ]
        self.answer(body={"files": files})

    def do_commit(self, name, revision, _, body):
        hub = self.server.hub
        files = dict(hub.find(name, revision)[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        asks = "create_pr=1" in self.path
        sha = hub.commit(name, "refs/pr/1" if asks else revision, files)
        address = f"{self.server.address}/{name}"
        answer = {"commitUrl": f"{address}/commit/{sha}", "commitOid": sha, "success": True}
        self.answer(body=answer | ({"pullRequestUrl": f"{address}/discussions/1"} if asks else {}))

    def do_tree(self, name, revision, _, __):
        commit = self.server.hub.find(name, revision)
        self.answer(body=[
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in commit[1].items()
        ])  # fmt: skip

    def do_revision(self, name, revision, _, __):
        commit = self.server.hub.find(name, revision)
        siblings = [{"rfilename": path} for path in commit[1]]
        self.answer(body={"id": name, "modelId": name, "sha": commit[0], "siblings": siblings})

    def do_resolve(self, name, revision, path, _):
        commit = self.server.hub.find(name, revision)
        if commit is None:
            return self.refuse("RevisionNotFound")
        if path not in commit[1]:
            return self.refuse("EntryNotFound")
        data = commit[1][path]
        return self.answer(body=data, X_Repo_Commit=commit[0], ETag=f'"{hashlib.sha1(data).hexdigest()}"')


@contextmanager
def hub_server():
    """A hub that answers until the block ends; ``hub.address`` is where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, server.address = Hub(), f"http://127.0.0.1:{server.server_port}"
    server.hub.address = server.address
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
