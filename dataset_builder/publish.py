"""Puts a dataset folder on the Hub: what goes there, what never does, and who must have agreed.

What is uploaded: README.md, dataset.json (without names of local files), videos/<split>.parquet, qa/<split>.parquet.
What is not: the working copies in `clips/` (the parquet files hold their bytes), the consent record, unfinished work,
and, unless asked for, the reference clips with the questions about them.

Afterwards, anywhere and without this package: `load_dataset("USER/NAME", "qa")` and `load_dataset("USER/NAME",
"videos")`, streaming or not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from ..hub import DATASET, check_repo_name, send
from .assemble import BUILD_FOLDER, CONSENT_FILE, SPLITS, load_local
from .consent import check_publishing, consent_id, declare_consent
from .engine import write_json
from .merge import CONFIGS, copy_without, link_or_copy, parts_of, public_part, recounted, remove_stage
from .records import ConsentRecord

SUBJECT_FILE = "subject.json"  # in a run folder, beside the dataset folder
_PUBLIC = ("format_version", "subjects", "parts")


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
    check_repo_name(repo)
    dataset = load_local(folder)
    where = f"the dataset as {repo} ({'private' if private else 'public'})"
    records = publishing_records(dataset.root, dataset.manifest, consents, i_have_consent, where)
    stage = folder / BUILD_FOLDER / "push"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        left_out = export_dataset(folder, stage, repo, with_reference=with_reference, consents=records)
        sent = send(stage, repo, DATASET, private=private, dry_run=dry_run, progress=progress)
    finally:
        remove_stage(stage)
    return sent | {"left_out": left_out, "consents": [consent_id(record) for record in records]}


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
