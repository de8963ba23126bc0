"""The dataset folder: written in one go, read back, and checked.

    README.md  dataset.json  videos/<split>.parquet  qa/<split>.parquet  clips/<video_id>.mp4  contact_sheets/

The parquet files carry the mp4 bytes and the features, so `load_dataset(folder, "qa")` works without this package;
`clips/` holds working copies. `dataset.json` is written last: a folder without it is not a dataset. `contact_sheets/`
is written by `build_dataset`, for people to look at, and is not part of the dataset.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from ..files import move_into_place
from .engine import hash_file, hash_text, write_atomically, write_json
from .records import QARow, VideoRow

FORMAT_VERSION = 1
SPLITS = ("train", "test")
CONSENT_FILE = "consent.json"  # the record the dataset was built with; stays here when the dataset is published
BUILD_FOLDER = ".build"  # unfinished work inside the output folder
CONTACT_SHEETS = "contact_sheets"  # pictures of what was made, for people to look at; not part of the dataset
_OWN = {"README.md", "dataset.json", CONSENT_FILE, "videos", "qa", "clips", CONTACT_SHEETS, BUILD_FOLDER}


@dataclass(frozen=True)
class LocalDataset:
    """A dataset on disk. manifest: dataset.json. videos: rows in stored order, with their questions."""

    subject: str
    manifest: dict[str, Any]
    videos: list[VideoRow]
    root: Path

    def split(self, name: str) -> list[VideoRow]:
        if name not in SPLITS:
            raise PVChatError(f"There is no split {name!r}; choose one of: {', '.join(SPLITS)}.")
        return [row for row in self.videos if row.split == name]

    @property
    def hash(self) -> str:
        return self.manifest["dataset_hash"]


def dataset_hash(subject: str, videos: Iterable[VideoRow]) -> str:
    """A hash of everything that a reader sees: rows, questions and the bytes of the clips, in any order of rows."""
    rows = []
    for row in videos:
        data = row.to_json()
        del data["path"], data["extra"]
        if row.subjects == ((row.subject,) if row.subject_present else ()):
            del data["subjects"]  # says nothing that the row does not say already
        data["qa"] = sorted(data["qa"], key=lambda q: q["qa_id"])
        rows.append(data)
    return hash_text(FORMAT_VERSION, subject, sorted(rows, key=lambda r: r["video_id"]))


def check_output(out: Path) -> None:
    """Raises PVChatError when `out` is a file or a folder with something that is not ours."""
    if out.is_file():
        raise PVChatError(f"The output {out} is a file; pass a folder that is new, empty, or an earlier build.")
    if not out.is_dir():
        return
    foreign = sorted(p.name for p in out.iterdir() if p.name not in _OWN)
    started = any((out / name).exists() for name in ("dataset.json", BUILD_FOLDER))
    if foreign or (any(out.iterdir()) and not started):
        named = ", ".join(foreign[:3]) or "files of something else"
        raise PVChatError(f"The output folder {out} holds something else ({named}); pass a new or an empty folder.")
    if (out / "dataset.json").exists():
        read_manifest(out)


def read_manifest(root: Path) -> dict[str, Any]:
    """Raises PVChatError when there is no dataset of this version."""
    path = root / "dataset.json"
    if not path.is_file():
        raise PVChatError(
            f"{root} is not a dataset folder: it has no dataset.json. Pass a folder made by pvchat build."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PVChatError(f"{path} is damaged ({type(error).__name__}); build the dataset again.") from error
    if version != FORMAT_VERSION:
        raise PVChatError(
            f"The dataset {root} has format version {version!r}, this pvchat reads {FORMAT_VERSION}; build it again."
        )
    return manifest


def find_problems(subject: str, videos: list[VideoRow]) -> list[str]:
    """Every contradiction in the rows, one line each; an empty list when all is well."""
    problems = []
    for what, ids in (("video_id", [v.video_id for v in videos]), ("qa_id", [q.qa_id for v in videos for q in v.qa])):
        problems += [f"{what} {i} occurs {n} times" for i, n in Counter(ids).items() if n > 1]
    splits: dict[str, set[str]] = {}
    for row in videos:
        splits.setdefault(row.sha256, set()).add(row.split)
        for parent in row.parent_ids:
            splits.setdefault(parent, set()).add(row.split)
        where = f"video {row.video_id}"
        if (row.subject in row.subjects) != row.subject_present:
            problems.append(f"{where}: the people who are seen ({row.subjects}) disagree with subject_present")
        if row.split not in SPLITS:
            problems.append(f"{where}: unknown split {row.split!r}")
        if not row.path.is_file():
            problems.append(f"{where}: the clip {row.path.name} is missing")
        elif hash_file(row.path) != row.sha256:
            problems.append(f"{where}: the clip {row.path.name} is not the one that was recorded")
        for qa in row.qa:
            problems += [f"qa {qa.qa_id}: {p}" for p in _qa_problems(subject, row, qa)]
    problems += [f"source {sha[:12]} is in both splits" for sha, names in splits.items() if len(names) > 1]
    return problems


def _qa_problems(subject: str, row: VideoRow, qa: QARow) -> list[str]:
    problems = []
    if (qa.video_id, qa.split, qa.subject_present, qa.subject) != (
        row.video_id, row.split, row.subject_present, subject,
    ):  # fmt: skip
        problems.append("disagrees with its video")
    if qa.category == "existence":
        says = qa.answer.split(",")[0].split(" ")[0].strip(".").lower()
        if says != ("yes" if row.subject_present else "no"):
            problems.append(
                f"answers {qa.answer!r} but the subject is {'present' if row.subject_present else 'absent'}"
            )
    for field, text in (("question", qa.question), ("answer", qa.answer)):
        if not text.strip():
            problems.append(f"empty {field}")
        if "<sks>" in text or "{name}" in text:
            problems.append(f"placeholder left in the {field}")
    if subject not in qa.question:
        problems.append("the question does not name the subject")
    return problems


def assemble_dataset(
    subject: str, videos: list[VideoRow], out: Path, manifest: dict[str, Any], stage: Path | None = None
) -> LocalDataset:
    """Writes the dataset folder and returns it as read back.

    videos: rows whose `path` points at finished clips anywhere. manifest: extra fields of dataset.json.
    stage: a scratch folder on the same disk; default: inside `out`.
    Raises PVChatError with all problems at once, before anything is written.
    """
    from ..model_card import dataset_card

    check_output(out)
    problems = find_problems(subject, videos)
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise PVChatError(f"The dataset has {len(problems)} problem(s): {shown}.")
    stage = stage or out / BUILD_FOLDER / "assembled"
    if stage.exists():
        shutil.rmtree(stage)
    for folder in ("videos", "qa", "clips"):
        (stage / folder).mkdir(parents=True)
    for row in videos:
        shutil.copyfile(row.path, stage / "clips" / f"{row.video_id}.mp4")
    splits = [s for s in SPLITS if any(v.split == s for v in videos)]
    for split in splits:
        rows = [v for v in videos if v.split == split]
        write_atomically(stage / "videos" / f"{split}.parquet", lambda p, r=rows: _write_videos(p, r))
        write_atomically(stage / "qa" / f"{split}.parquet", lambda p, r=rows: _write_qa(p, r))
    counts = {
        split: {
            "videos": sum(v.split == split for v in videos),
            "qa": sum(len(v.qa) for v in videos if v.split == split),
            "positives": sum(v.subject_present for v in videos if v.split == split),
            "origins": dict(sorted(Counter(v.origin for v in videos if v.split == split).items())),
            "categories": dict(sorted(Counter(q.category for v in videos if v.split == split for q in v.qa).items())),
        }
        for split in SPLITS
    }
    full = {
        **manifest,
        "format_version": FORMAT_VERSION,
        "subject": subject,
        "counts": counts,
        "dataset_hash": dataset_hash(subject, videos),
    }
    (stage / "README.md").write_text(str(dataset_card(full, stage)), encoding="utf-8")
    install(stage, out, full)
    return load_local(out)


def install(stage: Path, out: Path, manifest: dict[str, Any]) -> None:
    """Makes a dataset of a finished folder of tables, clips and card, which disappears; `dataset.json` comes last."""
    (out / "dataset.json").unlink(missing_ok=True)
    move_into_place(stage, out, ("videos", "qa", "clips", "README.md"))
    write_json(out / "dataset.json", manifest)


def load_local(folder: str | Path) -> LocalDataset:
    """Reads a dataset folder. Raises PVChatError when it is not one, is of another version, or misses clips."""
    import pyarrow.parquet as pq

    root = Path(folder)
    manifest = read_manifest(root)
    videos = []
    for split in SPLITS:
        path = root / "videos" / f"{split}.parquet"
        if not path.is_file():
            if manifest["counts"][split]["videos"]:
                raise PVChatError(f"The dataset {root} lacks videos/{split}.parquet; build it again.")
            continue
        columns = [name for name in pq.read_schema(path).names if name != "video"]
        for data in pq.read_table(path, columns=columns).to_pylist():
            shared = {k: data[k] for k in ("video_id", "subject", "split", "subject_present")}
            data["qa"] = tuple(QARow(**qa, **shared) for qa in data["qa"])
            videos.append(VideoRow(**data, path=root / "clips" / f"{data['video_id']}.mp4"))
    missing = [v.path.name for v in videos if not v.path.is_file()]
    if missing:
        raise PVChatError(
            f"The dataset {root} lacks {len(missing)} clip(s), for example {missing[0]}; build it again."
        )
    return LocalDataset(manifest["subject"], manifest, videos, root)


def with_paths(videos: Iterable[VideoRow], clips: Path) -> list[VideoRow]:
    return [replace(v, path=clips / f"{v.video_id}.mp4") for v in videos]


# --- parquet: arrow types and the description that `datasets` reads -------------------------------------------------

_NESTED = ("qa_id", "category", "question", "answer", "source", "refined_by", "still_ok")
_TYPES = {
    "video_id": "string", "subject": "string", "split": "string", "subject_present": "bool", "origin": "string",
    "parent_ids": ["string"], "backend": "string", "seed": "int64", "id_score": "float64", "fps": "float64",
    "num_frames": "int32", "width": "int32", "height": "int32", "licences": ["string"], "synthetic": "bool",
    "sha256": "string", "subjects": ["string"],
}  # fmt: skip
_QA_TYPES = {
    "qa_id": "string", "video_id": "string", "subject": "string", "split": "string", "category": "string",
    "question": "string", "answer": "string", "subject_present": "bool", "source": "string", "refined_by": "string",
    "still_ok": "bool",
}  # fmt: skip


def _arrow(kind: Any):
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(_arrow(kind[0]))
    if isinstance(kind, dict):
        return pa.struct([(name, _arrow(k)) for name, k in kind.items()])
    return {
        "bool": pa.bool_(),
        "string": pa.string(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float64": pa.float64(),
    }[kind]


def _feature(kind: Any) -> Any:
    if isinstance(kind, list):
        return {"feature": _feature(kind[0]), "_type": "List"}
    if isinstance(kind, dict):
        return {name: _feature(k) for name, k in kind.items()}
    return {"dtype": kind, "_type": "Value"}


def _table(columns: dict[str, list], types: dict[str, Any], video: list[dict] | None):
    import pyarrow as pa

    fields = [pa.field(name, _arrow(kind)) for name, kind in types.items()]
    features = {name: _feature(kind) for name, kind in types.items()}
    arrays = [pa.array(columns[name], type=field.type) for name, field in zip(types, fields, strict=True)]
    if video is not None:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        fields.append(pa.field("video", kind))
        arrays.append(pa.array(video, type=kind))
        features["video"] = {"_type": "Video"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))


def _write_videos(path: Path, rows: list[VideoRow]) -> None:
    import pyarrow.parquet as pq

    types = {**_TYPES, "qa": [{name: _QA_TYPES[name] for name in _NESTED}]}
    columns = {name: [_plain(getattr(row, name)) for row in rows] for name in _TYPES}
    columns["qa"] = [[{name: getattr(q, name) for name in _NESTED} for q in row.qa] for row in rows]
    video = [{"bytes": row.path.read_bytes(), "path": f"{row.video_id}.mp4"} for row in rows]
    pq.write_table(_table(columns, types, video), path, row_group_size=16)


def _write_qa(path: Path, rows: list[VideoRow]) -> None:
    import pyarrow.parquet as pq

    questions = [q for row in rows for q in row.qa]
    pq.write_table(_table({n: [getattr(q, n) for q in questions] for n in _QA_TYPES}, _QA_TYPES, None), path)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
