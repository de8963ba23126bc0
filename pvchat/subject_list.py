"""The list of people that `pvchat personalize-many` learns, a YAML file (the command's help has an example).

Fields are those of `pvchat personalize`; `name` and `reference` are required. Paths are meant from the file's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PVChatError

PATHS = {"reference": "a video", "gallery": "a folder", "consent": "a file", "test": "a folder", "photo": "a picture"}
FIELDS = ("name", "reference", "gallery", "consent", "test", "noun", "box", "photo")
REQUIRED = ("name", "reference")


@dataclass(frozen=True)
class Entry:
    """A person of the list. name: with its brackets; paths are absolute; box: in pixels of the first frame."""

    name: str
    reference: Path
    gallery: Path | None = None
    consent: Path | None = None
    test: Path | None = None
    noun: str = "person"
    box: tuple[float, ...] | None = None
    photo: Path | None = None

    @property
    def folder(self) -> str:
        """Name of the person's run folder."""
        return self.name.strip("<>")


def read_subject_list(path: str | Path) -> list[Entry]:
    """The people of a YAML file, in its order.

    Raises:
        PVChatError: the file cannot be read; or a field is unknown, missing or of another kind, a file is not there,
            or two people have one name. The message says which person and field.
    """
    import yaml

    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PVChatError(f"The list {path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, list) or not data:
        found = "nothing" if not data else f"a {type(data).__name__}"
        raise PVChatError(f"The list {path} must be a list of people, each with name and reference; it holds {found}.")
    entries = [_entry(path, number, item) for number, item in enumerate(data, 1)]
    first: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        if first.setdefault(entry.folder.lower(), number) != number:  # some disks do not tell "nz" from "Nz"
            raise PVChatError(
                f"{path.name}, subject {number}: {entry.name} is also the name of subject "
                f"{first[entry.folder.lower()]}; give each their own."
            )
    return entries


def _entry(path: Path, number: int, item: Any) -> Entry:
    from .dataset_builder import normalise_name

    where = f"{path.name}, subject {number}"
    if not isinstance(item, dict):
        raise PVChatError(f"{where} must be a mapping with name and reference, got {item!r}.")
    if isinstance(item.get("name"), str):
        where += f" ({item['name']})"
    unknown = [field for field in item if field not in FIELDS]
    if unknown:
        raise PVChatError(f"{where}: there is no field {unknown[0]!r}; allowed: {', '.join(FIELDS)}.")
    given = {field: value for field, value in item.items() if value is not None}
    for field in REQUIRED:
        if field not in given:
            raise PVChatError(f"{where}: {field} is missing; required: {', '.join(REQUIRED)}.")
    for field, value in given.items():
        if field == "box":
            given[field] = _box(where, value)
        elif not isinstance(value, str) or not value.strip():
            kind = f"the path of {PATHS[field]}" if field in PATHS else "text"
            raise PVChatError(f"{where}: {field} must be {kind}, got {value!r}.")
    for field in PATHS:
        if field in given:
            given[field] = (path.parent / Path(given[field]).expanduser()).resolve()
            if not given[field].exists():
                raise PVChatError(f"{where}: {field} must be {PATHS[field]} that exists, got {item[field]!r}.")
            if PATHS[field] == "a folder" and not given[field].is_dir():
                raise PVChatError(f"{where}: {field} must be a folder, but {item[field]!r} is a file.")
    try:
        given["name"] = normalise_name(given["name"])
    except PVChatError as error:
        raise PVChatError(f"{where}: {error}") from error
    return Entry(**given)


def _box(where: str, value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 4:
        raise PVChatError(f"{where}: box must be four numbers [x0, y0, x1, y1] in pixels, got {value!r}.")
    return tuple(float(side) for side in value)
