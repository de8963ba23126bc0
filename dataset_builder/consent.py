"""Consent: who agreed, when, to what, and until when. And who is never learned: minors.

A record is a JSON file (`--consent FILE`):

    {"given_by": "N. Z.", "date": "2026-01-31", "scope": "train a model; publish the dataset", "expires": "2027-01-31"}

`expires` may be left out; `"adult": false` is refused. A dataset leaves this machine only under a scope that says
"publish". `--i-have-consent` writes a record that is dated today.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

from ..errors import PVChatError
from .engine import hash_text
from .records import ConsentRecord, SubjectSpec

PUBLISH = "publish"  # the word in a scope that lets data leave this machine
MINORS = frozenset(
    {
        "adolescent", "baby", "boy", "child", "children", "girl", "infant", "kid", "minor", "newborn", "preteen",
        "pupil", "schoolboy", "schoolgirl", "teen", "teenage", "teenager", "toddler", "underage", "youngster",
    }
)  # fmt: skip


def read_consent(path: str | Path) -> ConsentRecord:
    """Reads a record that a person wrote.

    Raises PVChatError: no such record, an incomplete one, a minor's, or one that calls the person fictional (drawn
    people are recognised by their clip and need no record).
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PVChatError(f"The consent file {path} cannot be read as JSON: {error}.") from error
    if not isinstance(data, dict):
        raise PVChatError(f"The consent file {path} must hold one object with given_by, date and scope.")
    if data.pop("adult", True) is not True:
        raise PVChatError(f"The consent file {path} is about a minor; pvchat learns adults only, whoever agrees.")
    if data.get("fictional"):
        raise PVChatError(f"The consent file {path} says fictional, but a record is for real people; leave that out.")
    return ConsentRecord.from_json(data)


def declare_consent(subject: str, scope: str, today: dt.date | None = None) -> ConsentRecord:
    """The record that `--i-have-consent` writes: by this subject ("<Nz>"), today, to `scope`."""
    return ConsentRecord(
        given_by=subject.strip("<>"),
        date=(today or dt.date.today()).isoformat(),
        scope=f"{scope}; an adult's consent, declared with --i-have-consent",
    )


def require_consent(spec: SubjectSpec, today: dt.date | None = None) -> ConsentRecord:
    """The subject's record, checked. Raises PVChatError when there is none, it does not hold, or of a minor."""
    refuse_minor(spec.noun)
    if spec.consent is None:
        raise PVChatError(
            f"There is no consent record for {spec.name}: pass --consent FILE (given_by, date, scope) "
            f"or --i-have-consent."
        )
    check_consent(spec.consent, today)
    return spec.consent


def check_consent(record: ConsentRecord, today: dt.date | None = None) -> None:
    """Raises PVChatError when the record does not hold today."""
    today = today or dt.date.today()
    if dt.date.fromisoformat(record.date) > today:
        raise PVChatError(
            f"The consent of {record.given_by} is dated {record.date}, which is still to come; correct it."
        )
    if record.expires is not None and record.expires < record.date:
        raise PVChatError(
            f"The consent of {record.given_by} ends on {record.expires}, before it begins ({record.date}); correct it."
        )
    record.check(today)


def check_publishing(record: ConsentRecord, today: dt.date | None = None) -> None:
    """Raises PVChatError when the record does not hold today, or does not let the data leave this machine."""
    check_consent(record, today)
    if PUBLISH not in record.scope.lower():
        raise PVChatError(
            f"The consent of {record.given_by} covers {record.scope!r}, which does not say {PUBLISH!r}; ask, and pass "
            f"a record whose scope says so, or --i-have-consent."
        )


def refuse_minor(word: str | None) -> None:
    """Raises PVChatError when a word that somebody is called by (a noun, an age) is that of a minor."""
    if word is not None and word.strip().lower() in MINORS:
        raise PVChatError(f"pvchat learns adults only, and {word!r} is a minor; there is no option to change that.")


def consent_id(record: ConsentRecord) -> str:
    """The number under which a dataset refers to its record without repeating it."""
    return hash_text(record.to_json())[:16]
