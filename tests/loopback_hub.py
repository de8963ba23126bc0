"""A Hub on this machine, as much of it as pushing and loading datasets and models needs: repositories, uploads with
and without LFS, commits, listings and downloads. It keeps everything in memory and a log of what was asked.

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
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


class LoopbackHub:
    """repos, models: datasets and models by name. blobs: uploaded LFS objects by sha256. log: (method, path).
    stop_after: how many more blobs are accepted before uploads fail. refuse: a status that every request about a
    repository gets."""

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
        return self

    def __exit__(self, *error) -> None:
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

        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", url or self.url)
            patch.setattr(constants, "HF_HUB_OFFLINE", offline)
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
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
        if match := re.fullmatch(r"(/datasets)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.shelf = self.hub.repos if match[1] else self.hub.models
            return self.download(match[2], match[3])
        return self.missing("RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'ada'}/{wanted['name']}"
        is_dataset = wanted.get("type") == "dataset"
        shelf = self.hub.repos if is_dataset else self.hub.models
        if name in shelf:
            return self.answer({"error": "exists"}, 409)
        shelf[name] = Repo(private=bool(wanted.get("private", wanted.get("visibility") == "private")))
        return self.answer(
            {"url": f"{self.hub.url}/{'datasets/' if is_dataset else ''}{name}", "name": name, "id": name}
        )

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
            return self.tree(repo, rest.split("/", 2)[2] if rest.count("/") > 1 else "", query)
        if rest.startswith("paths-info/"):
            paths = json.loads(body)["paths"]
            return self.answer([self.entry(path, repo.files[path]) for path in paths if path in repo.files])
        if rest == "" or rest.startswith("revision/"):
            return self.answer(self.info(name, repo))
        if rest == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.sha}
            return self.answer({"branches": [main], "converts": [], "tags": []})
        return self.missing("EntryNotFound")

    @staticmethod
    def info(name: str, repo: Repo) -> dict[str, Any]:
        return {
            "id": name,
            "sha": repo.sha,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(repo.files)],
        }

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
        repo.commits += 1
        url = f"{self.hub.url}/datasets/{name}/commit/{repo.sha}"
        self.answer({"success": True, "commitOid": repo.sha, "commitUrl": url})

    def tree(self, repo: Repo, below: str, query: dict[str, list[str]]) -> None:
        inside = {
            path: content for path, content in repo.files.items() if path.startswith(f"{below}/" if below else "")
        }
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

    def download(self, name: str, path: str) -> None:
        repo = self.shelf.get(name)
        if repo is None or path not in repo.files:
            return self.missing("RepoNotFound" if repo is None else "EntryNotFound")
        content = repo.files[path]
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": repo.sha,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or self.command == "HEAD":
            return self.answer(content, headers=headers)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
        return self.answer(content[start : stop + 1], 206, headers)
