"""Puts a dataset folder on the Hub: what goes there, what never does, and who must have agreed.

What is uploaded: README.md, dataset.json (without names of local files), videos/<split>.parquet, qa/<split>.parquet.
What is not: the working copies in `clips/` (the parquet files hold their bytes), the consent record, unfinished work,
and, unless asked for, the reference clips with the questions about them.

Afterwards, anywhere and without this package: `load_dataset("USER/NAME", "qa")` and `load_dataset("USER/NAME",
"videos")`, streaming or not.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from .assemble import BUILD_FOLDER, CONSENT_FILE, SPLITS, load_local
from .consent import check_publishing, consent_id, declare_consent
from .engine import write_json
from .merge import CONFIGS, copy_without, link_or_copy, parts_of, public_part, recounted, remove_stage, row_groups
from .records import ConsentRecord

SUBJECT_FILE = "subject.json"  # in a run folder, beside the dataset folder
_PUBLIC = ("format_version", "subjects", "parts")
_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_LOCAL = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:(?=[\\/]))?(?:[\\/][\w.@ +-]*\w){2,}")
_SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def push_dataset(
    folder: str | Path,
    repo: str,
    *,
    private: bool = True,
    with_reference: bool = False,
    consents: Sequence[ConsentRecord] = (),
    i_have_consent: bool = False,
    dry_run: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Uploads a dataset folder to `repo` ("USER/NAME"). Interrupted, the same call goes on where it stopped.

    Args:
        private: whether a new repository is private; an existing one must be what is asked for.
        with_reference: upload the reference clips, too (origin `original`).
        consents: records, beside those in `consent.json` and `../subject.json`. Every real person of the dataset needs
            the record it was built with, and a scope that says "publish".
        i_have_consent: declare instead that every person agreed to this upload.
        dry_run: list what would be uploaded and stop; nothing is sent.
        progress: show bars.

    Returns:
        `repo`, `url`, `private`, `files` (path and bytes), `bytes`, `left_out` (reference clips), `consents` (their
        numbers), `dry_run`.

    Raises:
        PVChatError: no such dataset, a bad name, no consent that covers it, something local or secret in the data, or
            the Hub says no.
    """
    folder = Path(folder)
    if not _REPO.fullmatch(repo):
        raise PVChatError(f'The repository {repo!r} must be USER/NAME, such as "ada/nz-videos".')
    dataset = load_local(folder)
    where = f"the dataset as {repo} ({'private' if private else 'public'})"
    records = publishing_records(dataset.root, dataset.manifest, consents, i_have_consent, where)
    stage = folder / BUILD_FOLDER / "push"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        left_out = export_dataset(folder, stage, repo, with_reference=with_reference, consents=records)
        refuse_private(stage)
        files = [
            {"path": path.relative_to(stage).as_posix(), "bytes": path.stat().st_size}
            for path in sorted(stage.rglob("*"))
            if path.is_file()
        ]
        url = None if dry_run else _upload(stage, repo, private, progress)
    finally:
        remove_stage(stage)
    return {
        "repo": repo,
        "url": url,
        "private": private,
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
        "left_out": left_out,
        "consents": [consent_id(record) for record in records],
        "dry_run": dry_run,
    }


def publishing_records(
    folder: Path, manifest: dict[str, Any], consents: Sequence[ConsentRecord], declared: bool, what: str
) -> list[ConsentRecord]:
    """The records that let the real people of a dataset be published; none for drawn people.

    Raises PVChatError when one is missing, has run out, or does not cover it.
    """
    known = {consent_id(record): record for record in (*consents, *_records_at(folder))}
    records = []
    for part in parts_of(manifest):
        if part.get("fictional"):
            continue
        subject = part["subject"]
        record = known.get(part.get("consent_id"))
        if declared:
            record = declare_consent(subject, f"publish {what}")
        if record is None:
            raise PVChatError(
                f"There is no consent record of {subject} for {folder}: pass --consent FILE, the record the dataset "
                f"was built with, or --i-have-consent."
            )
        check_publishing(record)
        records.append(record)
    return records


def _records_at(folder: Path) -> Iterator[ConsentRecord]:
    """The records that a build or a run left beside the dataset."""
    for path, key in ((folder / CONSENT_FILE, None), (folder.resolve().parent / SUBJECT_FILE, "consent")):
        if not path.is_file():
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            data = data if key is None else data.get(key)
        except (OSError, ValueError, AttributeError) as error:
            raise PVChatError(f"The record {path} cannot be read as JSON: {error}.") from error
        if data:
            yield ConsentRecord.from_json(data)


def export_dataset(
    folder: Path, out: Path, repo: str, *, with_reference: bool, consents: Sequence[ConsentRecord] = ()
) -> int:
    """Writes to `out` what may be published, and returns how many reference clips were left out."""
    from ..model_card import dataset_card

    dataset = load_local(folder)
    dropped = set() if with_reference else {v.video_id for v in dataset.videos if v.origin == "original"}
    manifest = dataset.manifest
    if dropped:
        copy_without(folder, out, dropped)
        manifest = recounted(manifest, [v for v in dataset.videos if v.video_id not in dropped])
        if manifest is None:
            raise PVChatError(f"{folder} has reference clips only; pass --with-reference to publish them.")
    else:
        for config in CONFIGS:
            (out / config).mkdir(parents=True)
            for split in SPLITS:
                if (folder / config / f"{split}.parquet").is_file():
                    link_or_copy(folder / config / f"{split}.parquet", out / config / f"{split}.parquet")
    public = {name: manifest[name] for name in _PUBLIC if name in manifest} | public_part(manifest)
    card = dataset_card(public, out, repo=repo, left_out=len(dropped), consents=consents)
    (out / "README.md").write_text(str(card), encoding="utf-8")
    write_json(out / "dataset.json", public)
    return len(dropped)


# --- nothing local, nothing secret ----------------------------------------------------------------------------------


def refuse_private(folder: Path) -> None:
    """Raises PVChatError when a text of the folder holds a path of this machine or a secret."""
    for where, text in _texts(folder):
        found = _SECRET.search(text) or _LOCAL.search(text)
        if found is not None:
            what = f"{found[0][:6]}..., which looks like a secret" if _SECRET.search(text) else f"the path {found[0]}"
            raise PVChatError(f"{where} holds {what}; it would be published. Take it out and build again.")


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Every text that would be uploaded, and where it stands: files, and string columns of the tables."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".md", ".json"):
            yield name, path.read_text(encoding="utf-8")
        elif path.suffix == ".parquet":
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


# --- the Hub --------------------------------------------------------------------------------------------------------


def _upload(stage: Path, repo: str, private: bool, progress: bool) -> str:
    from huggingface_hub import DatasetCard, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _one_line(repo), _bars(progress):
        _validate(DatasetCard((stage / "README.md").read_text(encoding="utf-8")))
        try:
            info = api.repo_info(repo, repo_type="dataset")
        except RepositoryNotFoundError:
            api.create_repo(repo, repo_type="dataset", private=private)
        else:
            _check_repo(repo, info, private)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=stage,
            commit_message="Upload the dataset",
            delete_patterns=[f"{config}/*" for config in CONFIGS],
        )
    return f"{api.endpoint}/datasets/{repo}"


def _validate(card: Any) -> None:
    try:
        card.validate()
    except ValueError as error:
        raise PVChatError(f"The Hub does not accept the card: {error}.") from error


def _check_repo(repo: str, info: Any, private: bool) -> None:
    """An existing repository must be ours to overwrite, and as visible as was asked for."""
    if bool(info.private) != private:
        now, flag = ("private", "leave out --public") if info.private else ("public", "pass --public")
        raise PVChatError(
            f"The repository {repo} is {now}: {flag}, change it on its settings page, or choose another."
        )
    names = {sibling.rfilename for sibling in info.siblings or ()} - {".gitattributes"}
    if names - {"README.md"} and "dataset.json" not in names:
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
