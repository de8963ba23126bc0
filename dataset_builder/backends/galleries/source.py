"""Where gallery people come from: a folder, a table of local files, or a `datasets` data set.

    open_source(folder)                 every picture or video is one person
    open_source("part.parquet" | .csv)  LAION-Face style: a column with local paths, or img2dataset's `key`
    open_source(dataset | saved folder) a column of type Image or Video

A table or data set may say who is shown in a column named as in PERSON_COLUMNS; without one, every entry is somebody
else. Nothing is downloaded: entries without a local file are left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import MissingBackendError, PVChatError
from ...engine import hash_file, write_atomically
from ...people import open_picture
from ...video_io import read_video
from ..light.gallery import IMAGES, VIDEOS, list_gallery

PATH_COLUMNS = ("image_path", "local_path", "file_name", "file_path", "path", "file")
PERSON_COLUMNS = ("person", "person_id", "identity", "subject")


class FileSource:
    """Local files. persons: for each file who is shown; files of the same person have the same text."""

    def __init__(self, files: Sequence[Path], persons: Sequence[str] | None = None):
        self.files = list(files)
        self.persons = [str(path) for path in self.files] if persons is None else list(persons)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """The entry as a local file."""
        return self.files[index]

    def sha256(self, index: int) -> str:
        """Of the entry's bytes."""
        return hash_file(self.files[index])

    def stamp(self, index: int) -> list:
        """Changes when the entry may have changed: path, bytes, time of the last change in ns."""
        status = self.files[index].stat()
        return [str(self.files[index]), status.st_size, status.st_mtime_ns]

    def still(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8: the picture, or the middle frame. Raises PVChatError for an unreadable file."""
        path = self.files[index]
        if path.suffix.lower() in VIDEOS:
            frames, _ = read_video(path, max_frames=3)
            return frames[len(frames) // 2]
        return np.asarray(open_picture(path, path))


class DatasetSource:
    """Rows of a `datasets.Dataset` with a column of type Image or Video.

    unpacked: a folder; entries that live inside the data set are written there, named by content, when their file is
    asked for.
    """

    def __init__(self, dataset: Any, unpacked: Path):
        from datasets import Image, Video

        media = {name: kind for name, kind in dataset.features.items() if isinstance(kind, Image | Video)}
        if not media:
            raise PVChatError(
                f"The gallery data set has no column of pictures or videos (it has {', '.join(dataset.features)}); "
                f"cast one to datasets.Image() or datasets.Video()."
            )
        self.column, kind = next(iter(media.items()))
        self.is_video = isinstance(kind, Video)
        self._rows = dataset.cast_column(self.column, type(kind)(decode=False))
        self._fingerprint = dataset._fingerprint
        self._unpacked = Path(unpacked)
        column = next((name for name in PERSON_COLUMNS if name in dataset.column_names), None)
        self.persons = [str(p) for p in (range(len(dataset)) if column is None else dataset[column])]

    def __len__(self) -> int:
        return len(self._rows)

    def _bytes(self, index: int) -> bytes:
        value = self._rows[index][self.column]
        if value["bytes"] is not None:
            return value["bytes"]
        path = Path(value["path"] or "")
        if not path.is_file():
            raise PVChatError(f"Row {index} of the gallery data set names {path}, which is not a local file.")
        return path.read_bytes()

    def path(self, index: int) -> Path:
        """See FileSource."""
        data = self._bytes(index)
        name = str(self._rows[index][self.column]["path"] or "")
        suffix = Path(name).suffix.lower()
        if suffix not in IMAGES + VIDEOS:
            suffix = ".mp4" if self.is_video else ".png"
        target = self._unpacked / f"{hashlib.sha256(data).hexdigest()}{suffix}"
        if not target.exists():
            write_atomically(target, lambda temporary: temporary.write_bytes(data))
        return target

    def sha256(self, index: int) -> str:
        """See FileSource."""
        return hashlib.sha256(self._bytes(index)).hexdigest()

    def stamp(self, index: int) -> list:
        """See FileSource: fingerprint of the data set, and the row."""
        return [self._fingerprint, index]

    def still(self, index: int) -> np.ndarray:
        """See FileSource."""
        if self.is_video:
            return FileSource([self.path(index)]).still(0)
        return np.asarray(open_picture(io.BytesIO(self._bytes(index)), f"row {index} of the gallery data set"))


Source = FileSource | DatasetSource


def open_source(source: Any, unpacked: str | Path) -> Source:
    """A folder, a parquet or csv file, a folder saved by `Dataset.save_to_disk`, or a `datasets.Dataset`.

    unpacked: see DatasetSource.
    Raises PVChatError for anything else, and when nobody is in it.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir() and (path / "state.json").is_file():
            opened = DatasetSource(_datasets().load_from_disk(str(path)), Path(unpacked))
        elif path.is_dir():
            opened = FileSource(list_gallery(path))
        elif path.is_file() and path.suffix.lower() in (".parquet", ".csv"):
            opened = _table(path, Path(unpacked))
        else:
            raise PVChatError(
                f"The gallery {path} does not exist or is of another kind; pass a folder of pictures or videos, a "
                f"parquet or csv table with local paths, or a saved data set."
            )
    elif hasattr(source, "column_names") and hasattr(source, "__getitem__") and hasattr(source, "cast_column"):
        if isinstance(source, dict):
            raise PVChatError(f"The gallery data set has the splits {', '.join(source)}; pass one of them.")
        opened = DatasetSource(source, Path(unpacked))
    else:
        raise PVChatError(
            f"A gallery is a path or a datasets.Dataset that is not streamed, got {type(source).__name__}."
        )
    if not len(opened):
        raise PVChatError(f"The gallery {source} has no pictures or videos ({', '.join(IMAGES + VIDEOS)}).")
    return opened


def _table(table: Path, unpacked: Path) -> Source:
    if table.suffix.lower() == ".csv":
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = list(rows[0]) if rows else []
    else:
        _datasets()  # brings pyarrow
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pq.read_schema(table)
        if any(pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 for field in schema):
            return DatasetSource(_datasets().Dataset.from_parquet(str(table)), unpacked)
        wanted = [c for c in (*PATH_COLUMNS, *PERSON_COLUMNS, "key", "status") if c in schema.names]
        columns, rows = list(schema.names), pq.read_table(table, columns=wanted).to_pylist()
    path_column = next((c for c in PATH_COLUMNS if c in columns), None)
    if path_column is None and "key" not in columns:
        raise PVChatError(
            f"The table {table} has no column with local paths ({', '.join(PATH_COLUMNS)}, or img2dataset's key); it "
            f"has {', '.join(columns) or 'none'}. Addresses are not downloaded: fetch the pictures first."
        )
    person_column = next((c for c in PERSON_COLUMNS if c in columns), None)
    files, persons = [], []
    for row in rows:
        path = _img2dataset(table, row) if path_column is None else table.parent / str(row[path_column])
        if path is not None and path.suffix.lower() in IMAGES + VIDEOS and path.is_file():
            files.append(path)
            persons.append(str(path if person_column is None else row[person_column]))
    if not files:
        raise PVChatError(
            f"None of the {len(rows)} files that {table} lists is here; pictures are not downloaded, and paths count "
            f"from the table's folder."
        )
    return FileSource(files, persons)


def _img2dataset(table: Path, row: dict[str, Any]) -> Path | None:
    """img2dataset with `output_format=files`: SHARD.parquet beside the folder SHARD with KEY.jpg in it."""
    if row.get("status") not in (None, "", "success"):
        return None
    found = (table.parent / table.stem / f"{row['key']}{suffix}" for suffix in IMAGES)
    return next((path for path in found if path.is_file()), None)


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise MissingBackendError(
            'Galleries in tables and data sets need datasets: pip install "pvchat[train]".'
        ) from error
    return datasets
