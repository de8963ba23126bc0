"""identities: who is who. With faces, the people of a clip are told apart, the subjects chosen, and each cut out of
the frames; with a matte there is one person per footage. Everybody gets an embedding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import PVChatError
from ..engine import Artefact, Stage, Task, hash_file
from ..identities import MAX_FACES, FoundPerson, Tracklet, Wish, choose_subjects, find_people
from ..people import Footage, PersonFiles, read_picture
from ..protocols import Face, Person
from ..video_io import read_video, write_video
from .common import Build
from .faces import plain_face

CUT_FRAMES = 16  # most frames of a person that are cut out, evenly spaced
CUT_WIDTH = 2.5  # side of the square that is cut out around a face, in widths of the face
CUT_RAISE = 0.1  # how far below the middle of the square the face's middle lies, in sides of the square
CUT_SIDE = 1024  # most pixels of its side


def identities(build: Build, people: Sequence[Footage]) -> list[Footage]:
    """Footage without a person is dropped. Raises PVChatError when a subject cannot be told (see
    identities.choose_subjects)."""
    if build.uses_faces:
        found = _embed_found(build, _choose(build, people))
        build.engine.report("identities", len(people), len(found))
        return found
    stage = Stage("identities", 1, build.backends.embedder.id, ".npy")
    tasks = [Task(stage, f.label, make_embedding, {"files": f.files}, {"frames": f.frames}, f.hashes) for f in people]
    return _with_embeddings(build, people, tasks)


def _with_embeddings(build: Build, people: Sequence[Footage], tasks: list[Task]) -> list[Footage]:
    return [
        replace(footage, embedding=vector)
        for footage, vector in zip(people, build.engine.map(tasks), strict=True)
        if isinstance(vector, Artefact)
    ]


def _choose(build: Build, people: Sequence[Footage]) -> list[tuple[Footage, Artefact, int]]:
    """(footage, who was found in its source, which of them is meant); footage of one source is chosen together."""
    embedder = build.backends.embedder
    stage = Stage("identities", 2, f"people/{embedder.id}", ".json")
    groups: dict[str, list[Footage]] = {}
    for footage in people:
        groups.setdefault(footage.source.file_sha256, []).append(footage)
    tasks = []
    for group in groups.values():
        first = group[0]
        inputs, kept = (first.source.clip.sha256, first.faces.sha256), {"max_faces": _faces_kept(group)}
        args = {"path": first.source.clip.path, "faces": first.faces.path} | kept
        tasks.append(Task(stage, first.label, make_people, args, kept, inputs))
    photos = _photos(build, people)
    chosen = []
    for group, artefact in zip(groups.values(), build.engine.map(tasks), strict=True):
        if not isinstance(artefact, Artefact):
            continue
        everybody = read_people(artefact.path)
        size = (artefact.meta["width"], artefact.meta["height"]) * 2
        boxes = [f.box and tuple(s * n for s, n in zip(f.box, size, strict=True)) for f in group]
        wishes = [Wish(box, photos.get(f.photo)) for f, box in zip(group, boxes, strict=True)]
        picked = choose_subjects(everybody, wishes, different=embedder.different)
        numbers = [next(i for i, person in enumerate(everybody) if person is own) for own in picked]
        chosen += [(footage, artefact, number) for footage, number in zip(group, numbers, strict=True)]
    return chosen


def _faces_kept(group: list[Footage]) -> int | None:
    """How many faces of a frame count: the paper's two, or all (None) where the user wants several people, or points
    at one."""
    return MAX_FACES if len(group) == 1 and group[0].box is None and group[0].photo is None else None


def _photos(build: Build, people: Sequence[Footage]) -> dict[Path | None, np.ndarray]:
    """Photo -> embedding (D,). Raises PVChatError for a picture without a face."""
    stage = Stage("identities", 1, f"photo/{build.backends.embedder.id}", ".npy")
    paths = list(dict.fromkeys(footage.photo for footage in people if footage.photo is not None))
    # The photo alone decides the embedding; the reference is named so that it is forgotten with the person.
    inputs = {path: (build.hashes.get(path) or hash_file(path), build.reference_sha256) for path in paths}
    tasks = [Task(stage, path.name, make_photo, {"path": path}, {}, inputs[path]) for path in paths]
    found = dict(zip(paths, build.engine.map(tasks), strict=True))
    for path, vector in found.items():
        if not isinstance(vector, Artefact):
            raise PVChatError(f"The reference photo {path} cannot be used ({vector.reason}); use another one.")
    return {path: np.load(vector.path) for path, vector in found.items()}


def _embed_found(build: Build, chosen: list[tuple[Footage, Artefact, int]]) -> list[Footage]:
    cut = Stage("identities", 1, "cut@1", ".mp4")
    vector = Stage("identities", 1, "vector@1", ".npy")
    cuts, vectors = [], []
    for footage, artefact, number in chosen:
        source = footage.source.clip
        inputs, params = (source.sha256, artefact.sha256), {"person": number}
        args = {"people": artefact.path, "number": number}
        cuts.append(Task(cut, footage.label, make_cut, {"path": source.path, **args}, params, inputs))
        vectors.append(Task(vector, footage.label, make_vector, args, params, inputs))
    clips = build.engine.map(cuts)
    people = [
        replace(footage, clip=clip, frames=clip.meta["num_frames"])
        for (footage, _, _), clip in zip(chosen, clips, strict=True)
        if isinstance(clip, Artefact)
    ]
    vectors = [task for task, clip in zip(vectors, clips, strict=True) if isinstance(clip, Artefact)]
    return _with_embeddings(build, people, vectors)


def make_photo(target: Path, backends: Any, path: Path) -> dict:
    frames, fps = read_picture(path, CUT_SIDE)
    np.save(target, backends.embedder.embed(Person(frames[:1], fps)))
    return {}


def make_embedding(target: Path, backends: Any, files: PersonFiles) -> dict:
    np.save(target, backends.embedder.embed(files.load()))
    return {}


@dataclass(frozen=True)
class _KnownFaces:
    """An embedder whose detector says again what was found before."""

    embedder: Any
    found: list[list[Face]]

    @property
    def detector(self) -> _KnownFaces:
        return self

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        return self.found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.embedder, name)


def make_people(target: Path, backends: Any, path: Path, faces: Path, max_faces: int | None) -> dict:
    frames, fps = read_video(path)
    found = [[_face(f) for f in row] for _, row in json.loads(faces.read_text(encoding="utf-8"))]
    people = find_people(frames, fps, _KnownFaces(backends.embedder, found), max_faces=max_faces)
    target.write_text(json.dumps([_plain(person) for person in people]), encoding="utf-8")
    return {"people": len(people), "width": frames.shape[2], "height": frames.shape[1]}


def make_cut(target: Path, backends: Any, path: Path, people: Path, number: int) -> dict:
    """Squares around the person's face in up to CUT_FRAMES frames, all of one size."""
    person = read_people(people)[number]
    frames, fps = read_video(path)
    seen = sorted(person.faces.items())
    index = np.unique(np.linspace(0, len(seen) - 1, CUT_FRAMES).round().astype(int))
    chosen = [seen[i] for i in index]
    widths = [max(f.box[2] - f.box[0], f.box[3] - f.box[1]) for _, f in chosen]
    wanted = min(CUT_SIDE, CUT_WIDTH * float(np.median(widths)), min(frames.shape[1:3]))
    side = max(16, int(wanted) // 2 * 2)
    cut = np.stack([_square(frames[i], face.box, side) for i, face in chosen])
    if len(cut) == 1:
        cut = np.repeat(cut, 2, 0)  # one frame is no video
    seconds = (chosen[-1][0] - chosen[0][0]) / fps
    rate = (len(chosen) - 1) / seconds if seconds else fps
    write_video(target, cut, rate)
    return {"fps": rate, "num_frames": len(cut), "height": side, "width": side}


def _square(frame: np.ndarray, box: tuple[float, ...], side: int) -> np.ndarray:
    """(side, side, 3): CUT_WIDTH faces wide, moved into the frame where it reaches out of it."""
    from PIL import Image

    height, width = frame.shape[:2]
    length = min(CUT_WIDTH * max(box[2] - box[0], box[3] - box[1]), height, width)
    x0 = (box[0] + box[2]) / 2 - length / 2
    y0 = (box[1] + box[3]) / 2 - length * (0.5 - CUT_RAISE)
    x0, y0 = min(max(x0, 0), width - length), min(max(y0, 0), height - length)
    part = (x0, y0, x0 + length, y0 + length)
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.LANCZOS, box=part))


def make_vector(target: Path, backends: Any, people: Path, number: int) -> dict:
    np.save(target, read_people(people)[number].embedding)
    return {}


def read_people(path: Path) -> list[FoundPerson]:
    """What `make_people` wrote."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PVChatError(f"{path} is damaged; delete it and build again.") from error
    return [
        FoundPerson(
            tuple(
                Tracklet(tuple(t["frames"]), tuple(_face(f) for f in t["faces"]), np.float32(t["embedding"]))
                for t in person["tracklets"]
            ),
            np.float32(person["embedding"]),
            person["seconds"],
        )
        for person in data
    ]


def _plain(person: FoundPerson) -> dict:
    tracklets = [
        {
            "frames": [int(i) for i in t.frames],
            "faces": [plain_face(face) for face in t.faces],
            "embedding": np.asarray(t.embedding, float).tolist(),
        }
        for t in person.tracklets
    ]
    embedding = np.asarray(person.embedding, float).tolist()
    return {"tracklets": tracklets, "embedding": embedding, "seconds": float(person.seconds)}


def _face(data: dict) -> Face:
    points = data["points"]
    return Face(tuple(data["box"]), data["score"], None if points is None else np.array(points))
