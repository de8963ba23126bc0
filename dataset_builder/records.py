"""Records that the stages pass on: plain frozen dataclasses that turn into JSON and back.

    SubjectSpec + ConsentRecord -> Clip -> QA -> (assemble) VideoRow with QARow

A clip is identified by its content and provenance, never by its file name. A reference video may show several people
to learn; then a row is about one of them (`subject`) and lists all who are seen (`subjects`).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PVChatError

ORIGINS = ("original", "scene", "portrait", "animated", "hard_negative", "random_negative", "user")
CATEGORIES = ("existence", "appearance", "action", "location")
STILL_CATEGORIES = ("existence", "appearance")  # what a single frame can answer: the questions of stage 1
RESERVED_NAMES = ("<sks>",)

_NAME = re.compile(r"[^\W\d_][\w .'-]*")


def normalise_name(name: str) -> str:
    """Returns the name in angle brackets: "Nz" and "<Nz>" both give "<Nz>".

    Raises PVChatError when the name has no letter at its start, holds brackets or line breaks, or is reserved.
    """
    inner = str(name).strip()
    if inner.startswith("<") and inner.endswith(">"):
        inner = inner[1:-1].strip()
    if not _NAME.fullmatch(inner) or len(inner) > 40:
        raise PVChatError(
            f"The name {name!r} cannot be used: a name starts with a letter and has up to 40 letters, digits, spaces, "
            f'dots, hyphens or apostrophes. Pass for example --name "<Nz>".'
        )
    if f"<{inner.lower()}>" in RESERVED_NAMES:
        raise PVChatError(f'The name {name!r} is reserved for the placeholder; choose another, for example "<Nz>".')
    return f"<{inner}>"


class _Json:
    """to_json / from_json for dataclasses with JSON-able fields, paths, and nested records."""

    def to_json(self) -> dict[str, Any]:
        def plain(value: Any) -> Any:
            if isinstance(value, _Json):
                return value.to_json()
            if isinstance(value, Path):
                return str(value)
            if isinstance(value, (list, tuple)):
                return [plain(v) for v in value]
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return value

        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]):
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise PVChatError(f"{cls.__name__} does not know the field(s) {', '.join(unknown)}.")
        try:
            return cls(**data)
        except TypeError as error:
            raise PVChatError(f"{cls.__name__} is incomplete: {error}.") from error


@dataclass(frozen=True)
class ConsentRecord(_Json):
    """Who agreed to what. `date` and `expires` are ISO days; `fictional` marks drawn people, who need no consent."""

    given_by: str
    date: str
    scope: str
    expires: str | None = None
    fictional: bool = False

    def __post_init__(self):
        for name in ("given_by", "scope"):
            if not str(getattr(self, name)).strip():
                raise PVChatError(f"The consent record has an empty {name!r}; say who agreed, when, and to what.")
        for name in ("date", "expires"):
            value = getattr(self, name)
            if name == "expires" and value is None:
                continue
            try:
                dt.date.fromisoformat(value)
            except (TypeError, ValueError) as error:
                raise PVChatError(f"The consent record's {name} is {value!r}; write a day as YYYY-MM-DD.") from error

    @classmethod
    def for_fiction(cls, who: str = "drawn character") -> ConsentRecord:
        return cls(given_by=who, date="2000-01-01", scope="any use: not a real person", fictional=True)

    def check(self, today: dt.date | None = None) -> None:
        """Raises PVChatError when the consent has run out."""
        if self.expires is not None and dt.date.fromisoformat(self.expires) < (today or dt.date.today()):
            raise PVChatError(f"The consent of {self.given_by} ended on {self.expires}; ask for a new one.")


@dataclass(frozen=True)
class SubjectSpec(_Json):
    """The person to learn: name ("<Nz>"), reference video, and how the text may call them before it knows the name.

    Where the video shows several people, box, (x0, y0, x1, y1) in pixels of the first frame, is around the person; or
    photo is a picture of them, for recipes that find people by their faces. With neither, it is whoever is longest on
    screen.
    """

    name: str
    reference: Path
    consent: ConsentRecord | None = None
    noun: str = "person"
    pronouns: tuple[str, ...] = ()
    box: tuple[float, float, float, float] | None = None
    photo: Path | None = None

    def __post_init__(self):
        object.__setattr__(self, "name", normalise_name(self.name))
        object.__setattr__(self, "reference", Path(self.reference))
        object.__setattr__(self, "pronouns", tuple(self.pronouns))
        if isinstance(self.consent, dict):
            object.__setattr__(self, "consent", ConsentRecord.from_json(self.consent))
        if not re.fullmatch(r"[a-z]+", self.noun):
            raise PVChatError(f"The noun {self.noun!r} must be one lower-case word such as person, woman or man.")
        if self.box is not None:
            object.__setattr__(self, "box", tuple(float(side) for side in self.box))
            x0, y0, x1, y1 = self.box if len(self.box) == 4 else (0, 0, 0, 0)
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise PVChatError(f"The box of {self.name} must be x0,y0,x1,y1 in pixels, got {list(self.box)}.")
        if self.photo is not None:
            object.__setattr__(self, "photo", Path(self.photo))
            if self.box is not None:
                raise PVChatError(f"{self.name} is pointed at by a box or by a photo, not by both; leave one out.")

    def file_names(self) -> dict[str, str | None]:
        """The files without their folders, for records that outlive the build."""
        return {"reference": self.reference.name, "photo": None if self.photo is None else self.photo.name}


@dataclass(frozen=True)
class Clip(_Json):
    """One video of the dataset with its provenance. `path` is the mp4; fps in frames per second; sizes in pixels.

    `truth` holds what a generator knows about its clip: {"appearance": answer, ...}; None when nobody knows.
    `subject` is the name of the person that the clip is asked about, `subjects` of all who are seen and have a name.
    """

    video_id: str
    path: Path
    sha256: str
    origin: str
    subject_present: bool
    parent_ids: tuple[str, ...]
    backend: str
    seed: int
    fps: float
    num_frames: int
    width: int
    height: int
    synthetic: bool
    id_score: float | None = None
    licences: tuple[str, ...] = ()
    truth: dict[str, Any] | None = None
    subject: str = ""
    subjects: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "parent_ids", tuple(self.parent_ids))
        object.__setattr__(self, "licences", tuple(self.licences))
        object.__setattr__(self, "subjects", tuple(self.subjects))
        if self.origin not in ORIGINS:
            raise PVChatError(f"Clip origin {self.origin!r} is unknown; allowed: {', '.join(ORIGINS)}.")


@dataclass(frozen=True)
class QA(_Json):
    """One question with its answer. `source`: template | vlm | truth; `refined_by`: none | rules | a refiner's id."""

    question: str
    answer: str
    category: str
    source: str
    refined_by: str = "none"

    def __post_init__(self):
        if self.category not in CATEGORIES:
            raise PVChatError(f"QA category {self.category!r} is unknown; allowed: {', '.join(CATEGORIES)}.")

    @property
    def still_ok(self) -> bool:
        """True when one frame is enough to answer, so that stage 1 may use it."""
        return self.category in STILL_CATEGORIES


@dataclass(frozen=True)
class Reject(_Json):
    """An item that a stage dropped, and why."""

    item: str
    reason: str


@dataclass(frozen=True)
class QARow(_Json):
    """A row of the `qa` config."""

    qa_id: str
    video_id: str
    subject: str
    split: str
    category: str
    question: str
    answer: str
    subject_present: bool
    source: str
    refined_by: str
    still_ok: bool


@dataclass(frozen=True)
class VideoRow(_Json):
    """A row of the `videos` config plus `path`, the local mp4. `extra` keeps foreign fields and is not stored.

    subjects: the names of all people to learn who are seen in the clip; left out, it is the subject or nobody.
    """

    video_id: str
    subject: str
    split: str
    subject_present: bool
    origin: str
    parent_ids: tuple[str, ...]
    backend: str
    seed: int
    id_score: float | None
    fps: float
    num_frames: int
    width: int
    height: int
    licences: tuple[str, ...]
    synthetic: bool
    sha256: str
    path: Path
    qa: tuple[QARow, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    subjects: tuple[str, ...] | None = None

    def __post_init__(self):
        alone = (self.subject,) if self.subject_present else ()
        object.__setattr__(self, "subjects", alone if self.subjects is None else tuple(self.subjects))
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "parent_ids", tuple(self.parent_ids))
        object.__setattr__(self, "licences", tuple(self.licences))
        object.__setattr__(self, "qa", tuple(QARow.from_json(q) if isinstance(q, dict) else q for q in self.qa))
