"""Many subjects in one dataset folder, and datasets with some clips taken out.

Parquet files are copied row group by row group and a subject's groups stay together, so memory does not grow with the
number of clips, and a reader that streams meets one subject at a time.

A merged folder has the layout and the configs of any other (see `assemble`). Its `dataset.json` has no `subject` but
`subjects`, and `parts`: what is known about each subject's own dataset.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import PVChatError
from .assemble import (
    BUILD_FOLDER,
    CONTACT_SHEETS,
    FORMAT_VERSION,
    SPLITS,
    LocalDataset,
    check_output,
    dataset_hash,
    install,
    load_local,
    read_manifest,
)
from .engine import hash_text, write_atomically, write_json
from .records import QARow, VideoRow, normalise_name

CONFIGS = ("videos", "qa")
PART_FIELDS = (
    "subject", "dataset_hash", "counts", "created_by", "noun", "consent_id", "fictional", "recipe", "backends",
    "writer", "seed", "refined_by",
)  # fmt: skip


def merge_datasets(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    extra: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the datasets of several subjects into one folder and returns its manifest.

    folders: dataset folders, merged ones too; their order is the order of the rows and does not change the hash.
    extra: more fields of dataset.json. progress: called as (done, total) after every folder.
    Raises PVChatError, and leaves no dataset behind: a folder that is no dataset or was changed after it was built; a
    subject that occurs twice; a clip, or a source of clips, that is in `train` here and in `test` there.
    """
    folders, out = [Path(folder) for folder in folders], Path(out)
    if not folders:
        raise PVChatError("There is nothing to merge; pass the folders of at least one dataset.")
    check_output(out)
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise PVChatError(f"The output {out} is one of the datasets to merge; pass another folder.")
    stage = out / BUILD_FOLDER / "merged"
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "clips").mkdir(parents=True)
    parts: list[dict[str, Any]] = []
    sources: dict[str, tuple[str, str]] = {}
    with _Tables(stage) as tables:
        for number, folder in enumerate(folders, 1):
            dataset = load_local(folder)
            parts += _checked_parts(dataset, {part["subject"] for part in parts})
            for video in dataset.videos:
                _check_source(video, sources)
                link_or_copy(video.path, stage / "clips" / f"{video.video_id}.mp4")
            for config in CONFIGS:
                for split in SPLITS:
                    tables.append(folder / config / f"{split}.parquet", f"{config}/{split}.parquet")
            if progress is not None:
                progress(number, len(folders))
    manifest = merged_manifest(parts) | (extra or {})
    _write_card(manifest, stage, stage)
    install(stage, out, manifest)
    remove_stage(stage)
    return manifest


def _checked_parts(dataset: LocalDataset, taken: set[str]) -> list[dict[str, Any]]:
    """The parts of a dataset, each with the hash that its rows still have."""
    parts = []
    for part in parts_of(dataset.manifest):
        subject = part["subject"]
        if subject in taken:
            raise PVChatError(
                f"{subject} is the subject of two of the datasets; build one of them under another name."
            )
        if dataset_hash(subject, _rows_of(dataset, subject)) != part["dataset_hash"]:
            raise PVChatError(f"The dataset {dataset.root} was changed after it was built; build it again.")
        parts.append(public_part(part))
    return parts


def _check_source(video: VideoRow, sources: dict[str, tuple[str, str]]) -> None:
    for sha256 in (video.sha256, *video.parent_ids):
        split, subject = sources.setdefault(sha256, (video.split, video.subject))
        if split != video.split:
            raise PVChatError(
                f"The source {sha256[:12]} is in {split} for {subject} and in {video.split} for {video.subject}; "
                f"build one of the two with other clips."
            )


def parts_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What is known about each subject: the parts of a merged dataset, or the manifest itself."""
    return manifest.get("parts") or [manifest]


def public_part(part: dict[str, Any]) -> dict[str, Any]:
    """The fields about one subject that say how the data were made, and name no file of this machine."""
    kept = {name: part[name] for name in PART_FIELDS if name in part}
    recipe = kept.get("recipe")
    return kept | ({"recipe": recipe["name"]} if isinstance(recipe, dict) else {})


def merged_manifest(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """dataset.json of a merged dataset. Its hash depends on which datasets it has, not on their order."""
    return {
        "format_version": FORMAT_VERSION,
        "subject": None,
        "subjects": [part["subject"] for part in parts],
        "fictional": all(part.get("fictional", False) for part in parts),
        "counts": _added([part["counts"] for part in parts]),
        "dataset_hash": hash_text(FORMAT_VERSION, sorted([part["subject"], part["dataset_hash"]] for part in parts)),
        "parts": parts,
    }


def _added(counts: list[Any]) -> Any:
    """The sum of numbers, or of dictionaries of numbers, key by key."""
    if not isinstance(counts[0], dict):
        return sum(counts)
    keys = sorted({key for count in counts for key in count})
    return {key: _added([count[key] for count in counts if key in count]) for key in keys}


def count_rows(videos: Sequence[VideoRow]) -> dict[str, dict[str, Any]]:
    """The `counts` of dataset.json: split -> videos, qa, positives, origins, categories."""
    counts = {}
    for split in SPLITS:
        own = [video for video in videos if video.split == split]
        counts[split] = {
            "videos": len(own),
            "qa": sum(len(video.qa) for video in own),
            "positives": sum(video.subject_present for video in own),
            "origins": dict(sorted(Counter(video.origin for video in own).items())),
            "categories": dict(sorted(Counter(qa.category for video in own for qa in video.qa).items())),
        }
    return counts


def recounted(manifest: dict[str, Any], videos: Iterable[VideoRow]) -> dict[str, Any] | None:
    """The manifest with the counts and hashes of these rows; subjects without a row go. None when nobody is left."""
    by_subject: dict[str, list[VideoRow]] = {}
    for video in videos:
        by_subject.setdefault(video.subject, []).append(video)
    parts = [
        part | {"counts": count_rows(own), "dataset_hash": dataset_hash(part["subject"], own)}
        for part in parts_of(manifest)
        if (own := by_subject.get(part["subject"]))
    ]
    if not parts:
        return None
    return manifest | merged_manifest(parts) if "parts" in manifest else parts[0]


# --- one subject, fewer clips ---------------------------------------------------------------------------------------


def load_subject(folder: str | Path, subject: str) -> LocalDataset:
    """One subject of a merged dataset as a dataset of its own, to train or to evaluate on.

    Raises PVChatError when the folder is no dataset or does not know the subject.
    """
    dataset, subject = load_local(folder), normalise_name(subject)
    for part in parts_of(dataset.manifest):
        if part["subject"] == subject:
            return replace(dataset, subject=subject, manifest=part, videos=_rows_of(dataset, subject))
    known = ", ".join(part["subject"] for part in parts_of(dataset.manifest))
    raise PVChatError(f"The dataset {folder} does not know {subject}; it knows {known}.")


def copy_without(folder: Path, out: Path, dropped: Collection[str] = ()) -> None:
    """Writes the parquet files of a dataset to `out` without the videos in `dropped` (video ids) and their questions.

    A split that loses all its rows has no file.
    """
    with _Tables(out) as tables:
        for config in CONFIGS:
            for split in SPLITS:
                tables.append(folder / config / f"{split}.parquet", f"{config}/{split}.parquet", dropped)


def drop_videos(folder: str | Path, dropped: Collection[str]) -> dict[str, Any] | None:
    """Takes clips out of a dataset for good: files, questions, rows. Returns the new manifest.

    The folder disappears, and None is returned, when no row is left. The rows go last, so that the same call finishes
    what one that was stopped began.
    """
    folder = Path(folder)
    kept = [video for video in _read_rows(folder) if video.video_id not in dropped]
    manifest = recounted(read_manifest(folder), kept)
    shutil.rmtree(folder / CONTACT_SHEETS, ignore_errors=True)  # they show the clips
    if manifest is None:
        for name in (BUILD_FOLDER, "clips", "qa", "videos"):
            shutil.rmtree(folder / name, ignore_errors=True)
        shutil.rmtree(folder)
        return None
    stage = folder / BUILD_FOLDER / "rewritten"
    shutil.rmtree(stage, ignore_errors=True)
    copy_without(folder, stage, dropped)
    for video_id in dropped:
        (folder / "clips" / f"{video_id}.mp4").unlink(missing_ok=True)
    _replace_tables("qa", stage, folder)
    _write_card(manifest, stage, folder)
    write_json(folder / "dataset.json", manifest)
    _replace_tables("videos", stage, folder)
    remove_stage(stage)
    return manifest


def _replace_tables(config: str, stage: Path, folder: Path) -> None:
    for split in SPLITS:
        new, old = stage / config / f"{split}.parquet", folder / config / f"{split}.parquet"
        os.replace(new, old) if new.exists() else old.unlink(missing_ok=True)


def _read_rows(folder: Path) -> Iterable[VideoRow]:
    """The rows of a dataset folder as they stand in its tables, whatever else is missing."""
    for split in SPLITS:
        path = folder / "videos" / f"{split}.parquet"
        names = [name for name in pq.read_schema(path).names if name != "video"] if path.is_file() else []
        for data in (row for table in row_groups(path, names) for row in table.to_pylist()):
            shared = {name: data[name] for name in ("video_id", "subject", "split", "subject_present")}
            qa = tuple(QARow(**row, **shared) for row in data.pop("qa"))
            yield VideoRow(**data, qa=qa, path=folder / "clips" / f"{data['video_id']}.mp4")


def restore_clips(folder: str | Path) -> int:
    """Writes the working copies `clips/*.mp4` of a dataset that came from the Hub, and returns how many were missing.

    Afterwards the folder can be trained on.
    """
    folder, written = Path(folder), 0
    read_manifest(folder)
    (folder / "clips").mkdir(exist_ok=True)
    for split in SPLITS:
        for table in row_groups(folder / "videos" / f"{split}.parquet", ["video_id", "video"]):
            for row in table.to_pylist():
                path = folder / "clips" / f"{row['video_id']}.mp4"
                if not path.exists():
                    path.write_bytes(row["video"]["bytes"])
                    written += 1
    return written


def _rows_of(dataset: LocalDataset, subject: str) -> list[VideoRow]:
    return [video for video in dataset.videos if video.subject == subject]


# --- files ----------------------------------------------------------------------------------------------------------


def row_groups(path: Path, columns: list[str] | None = None) -> Iterable[pa.Table]:
    """The row groups of a parquet file, one at a time; nothing when there is no such file."""
    if not path.is_file():
        return
    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            yield file.read_row_group(index, columns)


class _Tables:
    """Parquet files that grow by the row groups of others; the first one decides the columns."""

    def __init__(self, root: Path):
        self.root = root
        self.writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, *error) -> None:
        for writer in self.writers.values():
            writer.close()

    def append(self, source: Path, target: str, dropped: Collection[str] = ()) -> None:
        """Adds the rows of `source` whose video_id is not in `dropped` to the file `target`."""
        gone = pa.array(sorted(dropped), pa.string())
        for table in row_groups(source):
            if len(gone):
                table = table.filter(pc.invert(pc.is_in(table["video_id"], gone)))
            if not len(table):
                continue
            if target not in self.writers:
                (self.root / target).parent.mkdir(parents=True, exist_ok=True)
                self.writers[target] = pq.ParquetWriter(self.root / target, table.schema)
            writer = self.writers[target]
            if not table.schema.equals(writer.schema):
                raise PVChatError(f"{source} has other columns than the first dataset; build both with one version.")
            writer.write_table(table, row_group_size=len(table))


def link_or_copy(source: Path, target: Path) -> None:
    """The same content under a second name: a hard link where the disk allows it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_card(manifest: dict[str, Any], tables: Path, folder: Path) -> None:
    from ..model_card import dataset_card

    text = str(dataset_card(manifest, tables))
    write_atomically(folder / "README.md", lambda path: path.write_text(text, encoding="utf-8"))


def remove_stage(stage: Path) -> None:
    """Deletes a folder of unfinished work, and the folder around it when nothing else is in there."""
    shutil.rmtree(stage, ignore_errors=True)
    if stage.parent.is_dir() and not any(stage.parent.iterdir()):
        stage.parent.rmdir()
