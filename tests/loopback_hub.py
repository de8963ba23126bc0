"""A Hub on this machine, as much of it as pushing and loading datasets and models needs: repositories, uploads with
and without LFS, commits, listings and downloads, of any commit. It keeps everything in memory and a log of what was
asked.

    with LoopbackHub() as hub:
        hub.pvchat("push-dataset", folder, "--repo", "ada/nz")
        hub.repos["ada/nz"].files["README.md"]
        subprocess.run([...], env=hub.environment(tmp_path))
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import tempfile
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pvchat.cli import main

TOKEN = "hf_" + "x" * 8


@dataclass
class Repo:
    """files: as they are now. history: commit -> files as they were after it."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.history)).encode()).hexdigest()

    def commit(self) -> None:
        self.history[hashlib.sha1(str(len(self.history) + 1).encode()).hexdigest()] = dict(self.files)

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a commit or of "main"; None when there is no such revision."""
        return self.files if revision in ("main", self.sha) else self.history.get(revision)


class LoopbackHub:
    """repos, models: datasets and models by name. blobs: uploaded LFS objects by sha256. log: (method, path).
    stop_after: how many more blobs are accepted before uploads fail. refuse: a status that every request about a
    repository gets. home: where `pvchat` keeps what it downloads."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.models: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.stop_after: int | None = None
        self.refuse: int | None = None

    def __enter__(self) -> LoopbackHub:
        hub = self
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.home = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *error) -> None:
        self.home.cleanup()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that takes this for the Hub and keeps its caches under `home`."""
        hidden = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        ours = {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return kept | ours | {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def pvchat(self, *words: Any, url: str | None = None, offline: bool = False) -> tuple[int, Any, str]:
        """Runs a command of pvchat that takes this (or `url`) for the Hub, here: (exit code, result, what it says)."""
        from huggingface_hub import close_session, constants
        from transformers.utils import hub

        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", url or self.url)
            template = "/{repo_id}/resolve/{revision}/{filename}"
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", (url or self.url) + template)
            patch.setattr(constants, "HF_HUB_OFFLINE", offline)
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patch.setattr(constants, "HF_HUB_CACHE", self.home.name)
            patch.setattr(hub, "_hf_api", None)  # the one that transformers keeps knows the Hub of its first call
            for name, value in (("HF_TOKEN", TOKEN), ("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")):
                patch.setenv(name, value)
            close_session()  # the one that is open may go through a proxy
            with redirect_stdout(out), redirect_stderr(err):
                code = main([*map(str, words), "--json"])
            close_session()
        assert "Traceback" not in err.getvalue(), err.getvalue()
        return code, json.loads(out.getvalue()) if out.getvalue() else None, err.getvalue()

    def uploads(self) -> int:
        return sum(method == "PUT" for method, _ in self.log)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub
    shelf: dict[str, Repo]

    def log_message(self, *args) -> None:
        pass

    def answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps({} if value is None else value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(value, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        read = b""
        while size := int(self.rfile.readline(), 16):
            read += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return read

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        body = self.body() if self.command in ("POST", "PUT") else b""
        self.hub.log.append((self.command, path))
        if path.startswith("/blobs/"):
            return self.store(path.rpartition("/")[2], body)
        if path in ("/api/validate-yaml", "/verify"):
            return self.answer({"errors": [], "warnings": []})
        if self.hub.refuse is not None:
            return self.answer({"error": "no"}, self.hub.refuse)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if re.fullmatch(r"(?:/datasets)?/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        if match := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(.*))?", path):
            self.shelf = self.hub.repos if match[1] == "datasets" else self.hub.models
            return self.api(match[2], match[3] or "", query, body)
        if match := re.fullmatch(r"(/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.shelf = self.hub.repos if match[1] else self.hub.models
            return self.download(match[2], match[3], match[4])
        return self.missing("RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'ada'}/{wanted['name']}"
        is_dataset = wanted.get("type") == "dataset"
        shelf = self.hub.repos if is_dataset else self.hub.models
        made = {"url": f"{self.hub.url}/{'datasets/' if is_dataset else ''}{name}", "name": name, "id": name}
        if name in shelf:
            return self.answer(made | {"error": "exists"}, 409)
        shelf[name] = Repo(private=bool(wanted.get("private", wanted.get("visibility") == "private")))
        return self.answer(made)

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            there = {} if item["oid"] in self.hub.blobs else {"upload": f"blobs/{item['oid']}", "verify": "verify"}
            actions = {name: {"href": f"{self.hub.url}/{path}", "header": {}} for name, path in there.items()}
            objects.append({"oid": item["oid"], "size": item["size"], **({"actions": actions} if actions else {})})
        self.answer(
            {"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"}
        )

    def store(self, oid: str, content: bytes) -> None:
        if self.hub.stop_after is not None:
            if self.hub.stop_after == 0:
                return self.answer({"error": "the network is down"}, 400)
            self.hub.stop_after -= 1
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.blobs[oid] = content
        return self.answer({}, headers={"ETag": f'"{oid}"'})

    def api(self, name: str, rest: str, query: dict[str, list[str]], body: bytes) -> None:
        repo = self.shelf.get(name)
        if repo is None:
            return self.missing("RepoNotFound")
        if rest.startswith("preupload/"):
            return self.answer({"files": [self.mode(file, repo) for file in json.loads(body)["files"]]})
        if rest.startswith("commit/"):
            return self.commit(repo, name, [json.loads(line) for line in body.splitlines()])
        if rest.startswith("tree/"):
            _, revision, below = f"{rest}/".split("/", 2)
            return self.tree(repo, revision, below.rstrip("/"), query)
        if rest.startswith("paths-info/"):
            paths, files = json.loads(body)["paths"], repo.at(rest.partition("/")[2]) or {}
            return self.answer([self.entry(path, files[path]) for path in paths if path in files])
        if rest == "" or rest.startswith("revision/"):
            return self.info(name, repo, rest.partition("/")[2] or "main")
        if rest == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.sha}
            return self.answer({"branches": [main], "converts": [], "tags": []})
        return self.missing("EntryNotFound")

    def info(self, name: str, repo: Repo, revision: str) -> None:
        files = repo.at(revision)
        if files is None:
            return self.missing("RevisionNotFound")
        self.answer(
            {
                "id": name,
                "sha": repo.sha if revision == "main" else revision,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(files)],
            }
        )

    @staticmethod
    def mode(file: dict[str, Any], repo: Repo) -> dict[str, Any]:
        there = repo.files.get(file["path"])
        is_lfs = any(fnmatch(file["path"], pattern) for pattern in ("*.parquet", "*.mp4", "*.safetensors"))
        oid = None if there is None else hashlib.sha1(b"blob %d\0" % len(there) + there).hexdigest()
        mode = "lfs" if is_lfs else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None if is_lfs else oid}

    def commit(self, repo: Repo, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                repo.files.pop(value["path"], None)
        repo.commit()
        url = f"{self.hub.url}/datasets/{name}/commit/{repo.sha}"
        self.answer({"success": True, "commitOid": repo.sha, "commitUrl": url})

    def tree(self, repo: Repo, revision: str, below: str, query: dict[str, list[str]]) -> None:
        files = repo.at(revision)
        if files is None:
            return self.missing("RevisionNotFound")
        inside = {path: content for path, content in files.items() if path.startswith(f"{below}/" if below else "")}
        if below and not inside:
            return self.missing("EntryNotFound")
        if query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return self.answer([self.entry(path, content) for path, content in sorted(inside.items())])
        depth = below.count("/") + 1 if below else 0
        entries = {}
        for path, content in sorted(inside.items()):
            parts = path.split("/")
            top = "/".join(parts[: depth + 1])
            is_file = len(parts) == depth + 1
            entries[top] = self.entry(path, content) if is_file else {"type": "directory", "oid": "0", "path": top}
        return self.answer(list(entries.values()))

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": path}
        if path.endswith((".parquet", ".safetensors")):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def download(self, name: str, revision: str, path: str) -> None:
        repo = self.shelf.get(name)
        files = None if repo is None else repo.at(revision)
        if files is None or path not in files:
            missing = "EntryNotFound" if files is not None else "RevisionNotFound" if repo else "RepoNotFound"
            return self.missing(missing)
        content = files[path]
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": repo.sha if revision == "main" else revision,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or self.command == "HEAD":
            return self.answer(content, headers=headers)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
        return self.answer(content[start : stop + 1], 206, headers)
