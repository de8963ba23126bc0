"""The people that a folder of runs knows, and how one of them is forgotten.

Everything is found by what the files say, never by the names of folders: run.json and subject.json name the person of
a run and of an adapter, dataset.json those of a dataset, and the sidecars of build caches hold the hashes of what each
artefact was made from.

`remove_subject` deletes what was derived from a person, takes their clips out of datasets that are about other people
as well, and then reads every file that is left for the name and for the hashes of what was deleted. It sees one folder
only: copies elsewhere, on the Hub, or in the cache of `datasets` are not its business.
"""

from __future__ import annotations

import hashlib
import html
import json
import mmap
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import PVChatError

RUN_PARTS = ("stage1", "stage2", "features", "report", "subject.json", "run.json")
DATASET_PARTS = ("README.md", "videos", "qa", "clips", "contact_sheets", ".build", "consent.json", "dataset.json")
ADAPTER_PARTS = ("README.md", "adapter_model.safetensors", "adapter_config.json", "subject.json")
DRAWN_PARTS = ("gallery", "test")  # of a run; deleted when the drawn world made them, else somebody's own files
UNIQUE = (".safetensors", ".mp4", ".npy")  # artefacts of which no two people have the same
TEXTS = (".json", ".jsonl", ".md", ".html", ".yaml", ".yml", ".txt", ".csv", ".part")
TEXT_SPACE = 1 << 16  # bytes at the head and the tail of a binary file
_SHA256 = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass
class Subject:
    """One person: the folders that are about them alone, and the datasets they share with others.

    sources: sha256 of their reference video and of the clips that show them. hashes: of their datasets.
    """

    name: str
    runs: list[Path] = field(default_factory=list)
    datasets: list[Path] = field(default_factory=list)
    shared: list[Path] = field(default_factory=list)
    adapters: list[Path] = field(default_factory=list)
    consent: dict[str, Any] | None = None
    fictional: bool = False
    sources: set[str] = field(default_factory=set)
    hashes: set[str] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        folders = {
            kind: [str(path) for path in getattr(self, kind)] for kind in ("runs", "datasets", "shared", "adapters")
        }
        own = outermost([*self.runs, *self.datasets, *self.adapters])
        return {
            "name": self.name,
            **folders,
            "bytes": sum(path.stat().st_size for folder in own for path in files_in(folder)),
            "consent": self.consent,
            "consent_state": self.consent_state(),
        }

    def consent_state(self) -> str:
        """In words: drawn, until when the consent holds, that it ended, or that there is no record."""
        from .dataset_builder.consent import check_consent
        from .dataset_builder.records import ConsentRecord

        if self.fictional:
            return "drawn, none needed"
        if self.consent is None:
            return "no record here"
        try:
            record = ConsentRecord.from_json(self.consent)
            check_consent(record)
        except PVChatError as error:
            return str(error)
        return f"holds until {record.expires}" if record.expires else "holds"


def find_subjects(runs: str | Path) -> dict[str, Subject]:
    """The people below a folder, by name. Raises PVChatError when there is no such folder."""
    runs = Path(runs)
    if not runs.is_dir():
        raise PVChatError(f"There is no folder {runs}; pass --runs with the folder that holds the runs.")
    found: dict[str, Subject] = {}

    def person(name: str) -> Subject:
        return found.setdefault(name, Subject(name))

    for folder, files in _folders(runs):
        if "run.json" in files:
            inputs = _read(folder / "run.json").get("inputs") or {}
            if inputs.get("name"):
                _add(person(inputs["name"]).runs, folder)
                person(inputs["name"]).sources |= {inputs["reference"]} if inputs.get("reference") else set()
        if "subject.json" in files:
            record = _read(folder / "subject.json")
            if record.get("subject"):
                person(record["subject"]).adapters.append(folder)
                if folder.name == "adapter" and not (folder.parent / "stage.json").exists():
                    _add(person(record["subject"]).runs, folder.parent)
            elif record.get("name"):
                own = person(record["name"])
                unfinished = folder.name == ".build"
                _add(own.datasets, folder.parent) if unfinished else _add(own.runs, folder)
                own.sources |= {record["reference_sha256"]} if record.get("reference_sha256") else set()
                own.consent = record.get("consent")
        if "dataset.json" in files:
            _add_dataset(folder, person)
    for subject in found.values():
        subject.fictional = subject.fictional or bool((subject.consent or {}).get("fictional"))
    return dict(sorted(found.items()))


def _add_dataset(folder: Path, person) -> None:
    parts = _parts(folder)
    for part in parts:
        subject = person(part["subject"])
        _add(subject.datasets if len(parts) == 1 else subject.shared, folder)
        subject.hashes |= {part["dataset_hash"]} if part.get("dataset_hash") else set()
        subject.fictional = subject.fictional or bool(part.get("fictional"))
        if len(parts) == 1 and (folder / "consent.json").exists():
            subject.consent = subject.consent or _read(folder / "consent.json")
    for row in dataset_rows(folder):
        if row["subject_present"] and parts:
            person(row["subject"]).sources |= {row["sha256"], *row["parent_ids"]}


def _parts(folder: Path) -> list[dict[str, Any]]:
    manifest = _read(folder / "dataset.json")
    return [part for part in manifest.get("parts") or [manifest] if part.get("subject")]


def _add(folders: list[Path], folder: Path) -> None:
    if folder not in folders:
        folders.append(folder)


def get_subject(runs: str | Path, name: str) -> Subject:
    """One person by name, with or without brackets. Raises PVChatError when nobody has it."""
    from .dataset_builder import normalise_name

    return _pick(find_subjects(runs), normalise_name(name), runs)


def _pick(subjects: dict[str, Subject], name: str, runs: str | Path) -> Subject:
    if name not in subjects:
        known = ", ".join(subjects) or "nobody"
        raise PVChatError(f"{runs} does not know {name}; it knows {known}.")
    return subjects[name]


# --- removal --------------------------------------------------------------------------------------------------------


@dataclass
class Removal:
    """What removing a person takes.

    delete: files and folders. rewrite: dataset -> ids of the clips to take out. retrain: adapters of other people that
    learned from clips of this person. kept: sources that are somebody's own files. hashes: of everything derived.
    """

    subject: Subject
    root: Path
    delete: list[Path] = field(default_factory=list)
    rewrite: dict[Path, set[str]] = field(default_factory=dict)
    retrain: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    hashes: set[str] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        deleted = []
        for path in collapsed(self.delete, self.root):
            sizes = [file.stat().st_size for file in files_in(path)]
            deleted.append({"path": str(path), "files": len(sizes), "bytes": sum(sizes)})
        return {
            "name": self.subject.name,
            "deleted": deleted,
            "bytes": sum(item["bytes"] for item in deleted),
            "rewritten": [{"dataset": str(path), "clips": len(ids)} for path, ids in self.rewrite.items()],
            "retrain": [str(path) for path in self.retrain],
            "kept": [str(path) for path in self.kept],
        }


def plan_removal(runs: str | Path, name: str, reference: str | Path | None = None) -> Removal:
    """Finds what removing a person takes, and changes nothing.

    reference: their video, to find the caches of builds that were stopped before they wrote down whose they are.
    """
    from .dataset_builder import normalise_name

    runs, name = Path(runs), normalise_name(name)
    subjects = find_subjects(runs)
    if reference is not None:
        subjects.setdefault(name, Subject(name)).sources.add(_hash_of(Path(reference)))
    subject = _pick(subjects, name, runs)
    plan = Removal(subject, runs, hashes=subject.sources | subject.hashes)
    owned = [
        folder / part
        for folders, parts in ((subject.adapters, ADAPTER_PARTS), (subject.datasets, DATASET_PARTS))
        for folder in folders
        for part in parts
    ]
    for folder in subject.runs:
        if not (folder / "dataset" / "dataset.json").exists():
            owned.append(folder / "dataset")  # unfinished
        for path in (folder / part for part in DRAWN_PARTS if (folder / part).is_dir()):
            (owned if _is_drawn(path) else plan.kept).append(path)
    owned += _cached(runs, plan.hashes)
    owned += [folder / part for folder in subject.runs for part in RUN_PARTS]
    plan.delete = outermost(path for path in owned if path.exists())
    plan.hashes |= {
        _hash_of(file)
        for path in plan.delete
        for file in files_in(path)
        if file.suffix in (".safetensors", ".parquet")
    }
    _plan_rewrites(runs, subjects, plan)
    return plan


def _plan_rewrites(runs: Path, subjects: dict[str, Subject], plan: Removal) -> None:
    """Datasets about other people: rows about this person, and clips of this person that serve as somebody else."""
    gone, changed = set(plan.delete), set()
    for folder, files in _folders(runs):
        if "dataset.json" not in files or _is_below(folder / "dataset.json", gone):
            continue
        own, people = set(), set()
        for row in dataset_rows(folder):
            negative = not row["subject_present"] and plan.subject.sources & {row["sha256"], *row["parent_ids"]}
            if row["subject"] == plan.subject.name or negative:
                own.add(row["video_id"])
                people.add(row["subject"])
                plan.hashes.add(row["sha256"])
        if own:
            plan.rewrite[folder] = own
            changed |= {part.get("dataset_hash") for part in _parts(folder) if part["subject"] in people}
    plan.retrain = sorted(
        {
            next((parent for parent in adapter.parents if (parent / "run.json").exists()), adapter)
            for other in subjects.values()
            for adapter in other.adapters
            if other is not plan.subject and _read(adapter / "subject.json").get("dataset_hash") in changed
        }
    )


def remove_subject(
    runs: str | Path, name: str, *, reference: str | Path | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Forgets a person and proves it.

    Returns:
        `name`, `deleted` (path, files, bytes), `bytes`, `rewritten` (dataset, clips taken out), `retrain` (adapters of
        others that learned from clips of this person), `kept` (sources that are somebody's own files), `dry_run`, and
        `scan`: how many `files` were read afterwards, and what is `left` (path, why); None in a dry run.

    Raises:
        PVChatError: no such folder or person.
    """
    from .dataset_builder.merge import drop_videos

    runs = Path(runs)
    plan = plan_removal(runs, name, reference)
    result = plan.to_json() | {"dry_run": dry_run, "scan": None}
    if dry_run:
        return result
    for dataset, ids in plan.rewrite.items():
        drop_videos(dataset, ids)
    for path in plan.delete:  # what names the person comes last, so that a killed removal can go on
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for path in plan.delete:
        _prune(path.parent, runs)
    files = list(files_in(runs))
    left = [found for path in files if (found := mention(path, plan.subject.name, plan.hashes))]
    return result | {"scan": {"files": len(files), "left": left}}


def mention(path: Path, name: str, hashes: Collection[str]) -> dict[str, str] | None:
    """Whether a file is derived from a person, or speaks of them: {"path", "why"}, else None.

    Weights and clips are compared by content; the name is looked for where they keep text, at their head and tail, as
    four bytes turn up by chance in gigabytes of numbers.
    """
    why = None
    if _hash_of(path) in hashes:
        why = "is a copy of a file of theirs"
    elif path.suffix == ".parquet":
        why = _table_mention(path, name, hashes)
    elif path.stat().st_size:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if any(_holds(content, spelling, path.suffix in UNIQUE) for spelling in spellings(name)):
                why = "holds the name"
            elif path.suffix in TEXTS and any(match[0].decode() in hashes for match in _SHA256.finditer(content)):
                why = "refers to a file of theirs"
    return {"path": str(path), "why": why} if why else None


def _holds(content: mmap.mmap, text: bytes, at_the_ends: bool) -> bool:
    if not at_the_ends:
        return content.find(text) >= 0
    return content.find(text, 0, TEXT_SPACE) >= 0 or content.find(text, max(0, len(content) - TEXT_SPACE)) >= 0


def _table_mention(path: Path, name: str, hashes: Collection[str]) -> str | None:
    import pyarrow as pa

    from .dataset_builder.merge import row_groups

    try:
        for row in (row for table in row_groups(path) for row in table.to_pylist()):
            video = row.pop("video", None)
            if video is not None and hashlib.sha256(video["bytes"] or b"").hexdigest() in hashes:
                return "holds a clip of theirs"
            text = json.dumps(row, ensure_ascii=False, default=str)
            if name in text:
                return "holds the name"
            if any(match[0].decode() in hashes for match in _SHA256.finditer(text.encode())):
                return "refers to a file of theirs"
    except pa.ArrowException:
        return "cannot be read"
    return None


def spellings(name: str) -> set[bytes]:
    """How a name stands in files: as it is, in JSON with escapes, and in HTML."""
    escaped = json.dumps(name)[1:-1]
    return {text.encode() for text in (name, escaped, escaped.replace("<", "\\u003c").replace(">", "\\u003e"))} | {
        html.escape(name).encode()
    }


# --- files ----------------------------------------------------------------------------------------------------------


def _folders(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every folder below and its file names; links to folders are not followed."""
    for folder, names, files in os.walk(root):
        names.sort()
        yield Path(folder), set(files)


def files_in(path: Path) -> Iterator[Path]:
    """The file itself, or the files below a folder, sorted by folder."""
    if path.is_file():
        yield path
    for folder, files in _folders(path):
        yield from (folder / name for name in sorted(files) if (folder / name).is_file())


def outermost(paths: Iterable[Path]) -> list[Path]:
    """The paths without those that lie below another one; order is kept."""
    every = dict.fromkeys(paths)
    return [path for path in every if not any(parent in every for parent in path.parents)]


def collapsed(paths: Iterable[Path], root: Path) -> list[Path]:
    """The paths with a folder below `root` in place of all that is in it, where all of it is meant."""
    whole = set(paths)
    around = {parent for path in whole for parent in path.parents if root in parent.parents}
    for folder in sorted(around, key=lambda folder: -len(folder.parts)):
        if folder.is_dir() and whole.issuperset(folder.iterdir()):
            whole.add(folder)
    return outermost(sorted(whole))


def _is_below(path: Path, folders: Collection[Path]) -> bool:
    return any(folder in folders for folder in (path, *path.parents))


def dataset_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """video_id, subject, subject_present, sha256, parent_ids of every clip of a dataset folder, as far as readable."""
    import pyarrow as pa

    from .dataset_builder.assemble import SPLITS
    from .dataset_builder.merge import row_groups

    columns = ["video_id", "subject", "subject_present", "sha256", "parent_ids"]
    for split in SPLITS:
        try:
            for table in row_groups(folder / "videos" / f"{split}.parquet", columns):
                yield from table.to_pylist()
        except pa.ArrowException:
            continue  # of another tool, or damaged: the scan after a removal names it


def _cached(runs: Path, known: set[str]) -> list[Path]:
    """Artefacts of build caches made from what has a known hash, with their sidecars; their hashes become known."""
    sidecars = [(path, _read(path)) for path in files_in(runs) if path.name.endswith(".done.json")]
    derived: dict[Path, None] = {}
    grown = True
    while grown:
        grown = False
        for path, record in sidecars:
            if path not in derived and known & set(record.get("inputs") or ()):
                derived[path] = None
                grown = True
                stem = path.name.removesuffix(".done.json")
                for file in path.parent.glob(f"{stem}.*"):
                    derived[file] = None
                    if file.suffix in UNIQUE:
                        known.add(record.get("sha256") or "")
    return list(derived)


def _is_drawn(folder: Path) -> bool:
    from .dataset_builder.cartoon import is_drawn

    return all(is_drawn(path) for path in files_in(folder))


def _prune(folder: Path, root: Path) -> None:
    """Deletes a folder below `root`, and those around it, as far as they are empty."""
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one when the file is something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _hash_of(path: Path) -> str:
    from .dataset_builder.engine import hash_file

    try:
        return hash_file(path)
    except OSError as error:
        raise PVChatError(f"{path} cannot be read: {error.strerror}.") from error
