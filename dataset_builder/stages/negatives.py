"""negatives: who else is shown, and how. Look-alikes for the hard negatives, other people for the random ones; nobody
is both, and nobody is one of the subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import PVChatError
from ..backends.others import are_subject
from ..engine import Reject, Rejected, Stage, Task, derive_seed
from ..people import Footage, PersonFiles
from ..protocols import Match
from ..recipe import NEGATIVE_ORIGINS, RecipeRow
from .common import STILL_FRAMES, Build, Shot, driver_of
from .faces import faces
from .identities import identities
from .ingest import ingest
from .select import select

MIN_PEOPLE = 2  # usable other people below which there are no negatives


def negatives(
    build: Build, references: Sequence[Footage], gallery: Path | None, strangers: Path | None = None
) -> list[Shot]:
    """The shots of other people that the recipe asks for.

    gallery: where the look-alikes come from; strangers: the random people, by default from the gallery too.
    Raises PVChatError when there are too few.
    """
    rows = [row for row in build.recipe.rows if row.origin in NEGATIVE_ORIGINS]
    if not rows:
        build.engine.skip("negatives", "the recipe has none")
        return []
    cast = _Cast(build, references)
    chosen = cast.choose(rows, gallery, strangers or gallery)
    shots = [
        Shot(
            subject=subject,
            origin=row.origin,
            index=index,
            footage=footage,
            style=build.recipe.style(row, index),
            driver=driver_of(row, index),
            still=index,
        )
        for subject, row in ((subject, row) for subject in chosen for row in rows)
        for index, footage in enumerate(_take(row, chosen[subject][row.origin]))
    ]
    return _with_all_frames(build, shots)


def moving(build: Build, people: Sequence[Footage]) -> list[Footage]:
    """The same people with all their frames, for generators that replay motion. A detector has seen them all."""
    if build.uses_faces:
        return list(people)
    return select(build, faces(build, people, build.recipe.max_frames))


def _take(row: RecipeRow, people: list[Footage]) -> list[Footage]:
    """Who is in each of the row's clips."""
    share = -(-row.count // row.people) if row.people else 1  # clips in a row of one person
    return [people[index // share % len(people)] for index in range(row.count)]


def _with_all_frames(build: Build, shots: list[Shot]) -> list[Shot]:
    """The shots with the footage that a scene needs. Somebody who cannot be cut out of all frames is replaced by the
    next one of the same row who can; when nobody can, the shot is dropped."""
    wanted = {shot.parent: shot.footage for shot in shots if shot.style == "scene"}
    found = {footage.source.file_sha256: footage for footage in moving(build, list(wanted.values()))}
    kept = []
    for number, shot in enumerate(shots):
        if shot.style != "scene":
            kept.append(shot)
            continue
        later = shots[number:] + shots[:number]
        people = (other.parent for other in later if (other.subject, other.origin) == (shot.subject, shot.origin))
        parent = next((parent for parent in people if parent in found), None)
        if parent is None:
            build.engine.drop("negatives", shot.label, "no usable footage of the person")
        else:
            kept.append(replace(shot, footage=found[parent]))
    return kept


class _Cast:
    """The people who were looked at, by the sha256 of their file."""

    def __init__(self, build: Build, references: Sequence[Footage]):
        self.build, self.references = build, references
        self.subjects = np.stack([footage.vector() for footage in references])
        self.seen: dict[str, Footage | None] = {}
        self._folder: Any = None

    def look(self, paths: Sequence[Path]) -> None:
        """Reads people in; files without a usable person are dropped on the way."""
        build = self.build
        sources = ingest(build, paths, optional=True)
        footage = [Footage(source, source.clip, STILL_FRAMES) for source in sources]
        found = select(build, identities(build, faces(build, footage, STILL_FRAMES)))
        self.seen |= {source.file_sha256: None for source in sources}
        self.seen |= {footage.source.file_sha256: footage for footage in found}

    def embed(self, path: Path, sha256: str) -> np.ndarray:
        """The embedding of a gallery file. Raises engine.Rejected when nobody usable is in it."""
        if sha256 not in self.seen:
            self.look([path])
        footage = self.seen.get(sha256)
        if footage is None:
            raise Rejected("no usable person")
        return footage.vector()

    def of_subjects(self) -> set[str]:
        """The files looked at so far that show one of the subjects."""
        usable = [sha256 for sha256, footage in self.seen.items() if footage is not None]
        if not usable:
            return set()
        vectors = np.stack([self.seen[sha256].vector() for sha256 in usable])
        shown = are_subject(self.subjects, vectors, self.build.backends.embedder.same)
        return {sha256 for sha256, own in zip(usable, shown, strict=True) if own}

    def choose(self, rows: Sequence[RecipeRow], gallery: Path, strangers: Path) -> dict[str, dict[str, list[Footage]]]:
        """subject -> origin -> people, different ones for each origin."""
        by_origin = {row.origin: row for row in rows}
        hard, anybody = by_origin.get("hard_negative"), by_origin.get("random_negative")
        chosen: dict[str, dict[str, list[Footage]]] = {}
        used: set[str] = set()
        for footage in self.references:
            own = chosen[footage.subject] = {}
            if hard is not None:
                matches = self._look_alikes(hard, footage, gallery, alone=anybody is None)
                own["hard_negative"] = [self.seen[match.sha256] for match in matches]
                used |= {match.sha256 for match in matches}
        if anybody is not None:
            people = self._strangers(anybody, gallery, strangers, sorted(used))
            for own in chosen.values():
                own["random_negative"] = people
        self._report(chosen)
        return chosen

    def _look_alikes(self, row: RecipeRow, footage: Footage, gallery: Path, alone: bool) -> list[Match]:
        """Those most alike the subject. alone: whether nobody has to be left for the random negatives."""
        wanted = row.people or row.count
        if self.build.recipe.backends["gallery"] == "folder":
            folder = self.folder(gallery)
            alike = self._others(folder.search(footage.vector(), len(folder.files)))
            room = len(alike) if alone else max(1, len(alike) // 2 // len(self.references))
            return alike[: min(wanted, room)]
        found = self._others(
            open_gallery(self, footage, gallery).search(footage.vector(), wanted + len(self.references))
        )
        self._require(len(found), gallery)
        return found[:wanted]

    def _strangers(self, row: RecipeRow, gallery: Path, strangers: Path, used: list[str]) -> list[Footage]:
        seed = derive_seed(self.build.seed, "random_negative")
        if self.build.recipe.backends.get("strangers", "folder") == "folder":
            folder = self.folder(gallery)
            matches = self._others(folder.sample(len(folder.files), seed, exclude=used))[: row.count]
            self._require(len(used) + len(matches), gallery)
            return [self.seen[match.sha256] for match in matches]
        from ..backends.galleries.random import RandomClips

        source = RandomClips(strangers, self.build.engine.root / "unpacked")
        people: list[Footage] = []
        for match in source.sample(len(source.clips), seed, exclude=used):
            if len(people) == row.count:
                break
            people += [self.seen[match.sha256] for match in self._others([match])]
        self._require(len(people), strangers)
        return people

    def _others(self, matches: Sequence[Match]) -> list[Match]:
        """Those of whom there is usable footage and who are none of the subjects."""
        usable = []
        for match in matches:
            try:
                self.embed(match.path, match.sha256)
            except Rejected:
                continue
            usable.append(match)
        subjects = self.of_subjects()
        return [match for match in usable if match.sha256 not in subjects]

    def folder(self, gallery: Path) -> Any:
        """The light gallery, all of it read in at once."""
        if self._folder is None:
            from ..backends.light.gallery import FolderGallery

            self._folder = FolderGallery(gallery, self.build.backends.embedder, self.embed, self.build.hashes)
            self.look(self._folder.files)
            usable = sum(footage is not None for footage in self.seen.values())
            self._require(usable - len(self.of_subjects()), gallery)
        return self._folder

    def _require(self, count: int, place: Path) -> None:
        if count < MIN_PEOPLE:
            raise PVChatError(
                f"The gallery {place} has {count} usable other people; at least {MIN_PEOPLE} are needed."
            )

    def _report(self, chosen: dict[str, dict[str, list[Footage]]]) -> None:
        build = self.build
        usable = {sha: footage for sha, footage in self.seen.items() if footage is not None}
        subjects = self.of_subjects()
        for sha256, footage in usable.items():
            if sha256 in subjects:
                build.engine.drop("negatives", footage.label, "looks like a subject")
        people = {f.source.file_sha256 for own in chosen.values() for group in own.values() for f in group}
        build.engine.report("negatives", len(usable), len(people))
        for own in chosen.values():
            for origin, group in own.items():
                count = len({footage.source.file_sha256 for footage in group})
                build.gallery_people[origin] = max(build.gallery_people.get(origin, 0), count)


def open_gallery(cast: _Cast, footage: Footage, gallery: Path) -> Any:
    """The recipe's gallery, but the light one."""
    from ..backends.galleries.clip import ClipTopK
    from ..backends.galleries.face import FaceTopK

    build, root = cast.build, cast.build.engine.root
    kind, embedder = build.recipe.backends["gallery"], build.backends.embedder
    if kind == "face-topk":
        return FaceTopK(gallery, embedder, cast.embed, root / "unpacked")
    encoder = build.backends.gallery
    stage, params = Stage("negatives", 1, encoder.id, ".npy"), {"frames": footage.frames, "best": footage.best}
    task = Task(stage, footage.label, make_query, {"files": footage.files}, params, footage.hashes)
    query = build.engine.run(task)
    if isinstance(query, Reject):
        raise PVChatError(f"CLIP cannot look at {footage.label}: {query.reason}.")
    return ClipTopK(gallery, root / "clip-index", encoder, np.load(query.path), embedder, cast.embed)


def make_query(target: Path, backends: Any, files: PersonFiles) -> dict:
    """The CLIP embedding (D,) of the best still."""
    np.save(target, backends.gallery.encode([files.load().still().frames[0]])[0])
    return {}
