"""Role NegativeRetriever: people at random, one clip each.

CelebV-HQ layout (github.com/CelebV-HQ/CelebV-HQ): mp4 files named by clip, and a json file about them. Two forms are
read: the published one, `{"clips": {clip: {"ytb_id": ...}}}`, where clips of one source video count as one person, and
the authors' grouped one, `{"groups": {person: {"clips": {clip: ...}}}}`. The data set is for non-commercial research,
and its clips must not be passed on; nothing here downloads it.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....errors import PVChatError
from ...protocols import Match
from ..light.gallery import list_gallery
from .source import FileSource, Source, open_source


class RandomClips:
    """source: a folder with a json file in CelebV-HQ layout, or anything that source.open_source takes.

    licences: stamped on the clips. unpacked: where entries of a data set are written as files.
    Raises PVChatError for an unusable source or json file.
    """

    id = "random-clips@1"

    def __init__(self, source: Any, unpacked: str | Path, licences: tuple[str, ...] = ("user",)):
        self.licences = licences
        self.source = _celebv(Path(source)) if isinstance(source, str | Path) else None
        if self.source is None:
            self.source = open_source(source, unpacked)
        self.clips: dict[str, list[int]] = defaultdict(list)
        for index, person in enumerate(self.source.persons):
            self.clips[person].append(index)

    def sample(self, n: int, seed: int, exclude: Sequence[str] = ()) -> list[Match]:
        """Up to n different people, one random clip each; nobody with a clip whose sha256 is in `exclude`.

        The same seed gives the same people and clips. Copies of a file count as one person.
        """
        rng = random.Random(seed)
        people = sorted(self.clips)
        rng.shuffle(people)
        taken, found = set(exclude), []
        for person in people:
            if len(found) == n:
                break
            clips = self.clips[person]
            clip = rng.choice(clips)
            sha256 = self.source.sha256(clip)
            others = (self.source.sha256(index) for index in clips if index != clip) if exclude else ()
            if sha256 in taken or any(other in exclude for other in others):
                continue
            found.append(Match(self.source.path(clip), sha256))
            taken.add(sha256)
        return found


def _celebv(folder: Path) -> Source | None:
    """The folder's clips by person; None when it has no json file."""
    records = sorted(folder.glob("*.json")) if folder.is_dir() and not (folder / "state.json").exists() else []
    if not records:
        return None
    if len(records) > 1:
        raise PVChatError(
            f"The folder {folder} has {len(records)} json files; leave the one that says who is in the clips."
        )
    person_of = _read_people(records[0])
    files, persons = [], []
    for path in list_gallery(folder):
        if path.stem in person_of:
            files.append(path)
            persons.append(person_of[path.stem])
    if not files:
        raise PVChatError(f"None of the {len(person_of)} clips that {records[0]} lists is in {folder}; add CLIP.mp4.")
    return FileSource(files, persons)


def _read_people(record: Path) -> dict[str, str]:
    """clip -> person"""
    text = record.read_text(encoding="utf-8")
    try:
        # The grouped files of the authors spell booleans as Python does.
        data = json.loads(re.sub(r"(?<=[:\[,])(\s*)(True|False)\b", lambda m: m[1] + m[2].lower(), text))
        if "groups" in data:
            return {clip: str(person) for person, group in data["groups"].items() for clip in group["clips"]}
        return {clip: str(facts["ytb_id"]) for clip, facts in data["clips"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PVChatError(
            f'{record} is not in CelebV-HQ layout: it needs {{"clips": {{CLIP: {{"ytb_id": VIDEO}}}}}} or '
            f'{{"groups": {{PERSON: {{"clips": {{CLIP: ...}}}}}}}}.'
        ) from error
