"""What every push to the Hub has in common: a folder of what may leave, a look at each text in it, and the upload.

`refuse_private` is the last gate before anything is sent: a path of this machine or a secret in any text stops it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PVChatError

SUBJECT_FILES = ("subject.json", "adapter_config.json", "adapter_model.safetensors")
PATHLIKE = ("tokenizer.json", ".py")  # names and endings where pieces of words, or escapes, look like paths
TEXTS = (".md", ".json", ".jinja", ".py", ".txt")
REPO = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")
_LOCAL = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:(?=[\\/]))?(?:[\\/][\w.@ +-]*\w){2,}")
_SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b|-----BEGIN [A-Z ]*PRIVATE KEY"
)


@dataclass(frozen=True)
class Kind:
    """A sort of repository.

    Args:
        title: what it is called in messages.
        repo_type: "dataset" or "model".
        mark: the file by which a repository of ours is known; without it, it is not written to.
        replaced: patterns of files that an upload takes away when it does not bring them itself.
    """

    title: str
    repo_type: str
    mark: str
    replaced: tuple[str, ...]


DATASET = Kind("dataset", "dataset", "dataset.json", ("videos/*", "qa/*"))
ADAPTER = Kind("adapter", "model", "subject.json", ("*.safetensors",))
MODEL = Kind("model", "model", "modeling_pvchat.py", ("*.safetensors", "*.safetensors.index.json", "*.py"))


def check_repo_name(repo: str) -> None:
    """Raises PVChatError when this is not USER/NAME."""
    if not REPO.fullmatch(repo):
        raise PVChatError(f'The repository {repo!r} must be USER/NAME, such as "ada/nz".')


def subject_folder(place: str | Path) -> Path:
    """A subject's adapter: the folder itself, or a local copy of a repository of the Hub ("USER/NAME").

    Raises:
        PVChatError: there is neither, or the repository is not one of a subject.
    """
    if Path(place).exists() or not REPO.fullmatch(str(place)):
        return Path(place)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        with _bars(sys.stderr.isatty()):
            folder = Path(snapshot_download(str(place), allow_patterns=list(SUBJECT_FILES)))
    except (OSError, RuntimeError, HTTPError) as error:  # RuntimeError: the connection of another file was closed
        raise PVChatError(
            f"{place} is no folder, and cannot be fetched from the Hub ({type(error).__name__}); pass the adapter "
            f"folder of a run, or USER/NAME of an adapter that you may read."
        ) from error
    if missing := [name for name in SUBJECT_FILES if not (folder / name).is_file()]:
        raise PVChatError(f"{place} on the Hub is not a subject's adapter: it has no {missing[0]}.")
    return folder


# --- nothing local, nothing secret ----------------------------------------------------------------------------------


def refuse_private(folder: Path) -> None:
    """Raises PVChatError when a text of the folder holds a path of this machine or a secret."""
    for where, text in _texts(folder):
        secret = _SECRET.search(text)
        local = None if where.endswith(PATHLIKE) else _LOCAL.search(text)
        if secret or local:
            what = f"{secret[0][:6]}..., which looks like a secret" if secret else f"the path {local[0]}"
            raise PVChatError(f"{where} holds {what}; it would be published. Take it out and build again.")


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Every text that would be uploaded, and where it stands: files, headers of weights, string columns of tables."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in TEXTS:
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".safetensors":
            yield name, json.dumps(weights_header(path), ensure_ascii=False)
        elif path.suffix == ".parquet":
            yield from _table_texts(path, name)


def _table_texts(path: Path, name: str) -> Iterator[tuple[str, str]]:
    from .dataset_builder.merge import row_groups

    for table in row_groups(path):
        for row in table.to_pylist():
            video = row.pop("video", None)
            if video is not None:
                yield f"{name} (video {row['video_id']})", video["path"] or ""
            yield f"{name} (video {row['video_id']})", "\n".join(_strings(row))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def weights_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name -> dtype, shape, offsets, and `__metadata__`.

    Raises:
        PVChatError: it is not one.
    """
    try:
        with open(path, "rb") as file:
            return json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise PVChatError(f"{path.name} is not a safetensors file; save the weights again.") from error


# --- the Hub --------------------------------------------------------------------------------------------------------


def send(stage: Path, repo: str, kind: Kind, *, private: bool, dry_run: bool, progress: bool) -> dict[str, Any]:
    """Looks at what is staged and uploads it. Interrupted, the same call goes on where it stopped.

    Returns:
        `repo`, `url` (None in a dry run), `private`, `files` (path and bytes), `bytes`, `dry_run`.

    Raises:
        PVChatError: something local or secret in a text, or the Hub says no.
    """
    refuse_private(stage)
    files = [
        {"path": path.relative_to(stage).as_posix(), "bytes": path.stat().st_size}
        for path in sorted(stage.rglob("*"))
        if path.is_file()
    ]
    return {
        "repo": repo,
        "url": None if dry_run else _upload(stage, repo, kind, private, progress),
        "private": private,
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
        "dry_run": dry_run,
    }


def _upload(stage: Path, repo: str, kind: Kind, private: bool, progress: bool) -> str:
    from huggingface_hub import DatasetCard, HfApi, ModelCard
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _one_line(repo), _bars(progress):
        card = DatasetCard if kind.repo_type == "dataset" else ModelCard
        _validate(card((stage / "README.md").read_text(encoding="utf-8")))
        try:
            info = api.repo_info(repo, repo_type=kind.repo_type)
        except RepositoryNotFoundError:
            api.create_repo(repo, repo_type=kind.repo_type, private=private)
        else:
            _check_repo(repo, info, private, kind.mark)
        api.upload_folder(
            repo_id=repo,
            repo_type=kind.repo_type,
            folder_path=stage,
            commit_message=f"Upload the {kind.title}",
            delete_patterns=list(kind.replaced),
        )
    return f"{api.endpoint}/{'datasets/' if kind.repo_type == 'dataset' else ''}{repo}"


def _validate(card: Any) -> None:
    try:
        card.validate()
    except ValueError as error:
        raise PVChatError(f"The Hub does not accept the card: {error}.") from error


def _check_repo(repo: str, info: Any, private: bool, mark: str) -> None:
    """An existing repository must be ours to overwrite, and as visible as was asked for."""
    if bool(info.private) != private:
        now, flag = ("private", "leave out --public") if info.private else ("public", "pass --public")
        raise PVChatError(
            f"The repository {repo} is {now}: {flag}, change it on its settings page, or choose another."
        )
    names = {sibling.rfilename for sibling in info.siblings or ()} - {".gitattributes"}
    if names - {"README.md"} and mark not in names:
        raise PVChatError(f"The repository {repo} holds something else ({sorted(names)[0]}); choose another name.")


@contextmanager
def _one_line(repo: str) -> Iterator[None]:
    """Turns what the Hub and the network say into one line for the user."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    again = "the same command goes on where it stopped"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PVChatError("The Hub cannot be reached: HF_HUB_OFFLINE is set; unset it to push.") from error
    except LocalTokenNotFoundError as error:
        raise PVChatError("The Hub needs to know who you are: run `hf auth login` or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise PVChatError(
                f"The Hub refuses {repo} ({status}): log in with `hf auth login`, with a token that may write there."
            ) from error
        raise PVChatError(f"The Hub refused the upload to {repo} ({status}); {again}.") from error
    except RuntimeError as error:  # how the library reports a file that did not arrive
        raise PVChatError(f"The upload to {repo} failed ({error}); {again}.") from error
    except (HTTPError, ConnectionError) as error:
        raise PVChatError(f"The Hub cannot be reached ({type(error).__name__}); {again}.") from error


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    enable_progress_bars() if shown else disable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars() if before else enable_progress_bars()
