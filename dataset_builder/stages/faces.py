"""faces: where the people are. With a detector, the faces of every looked-at frame; without one, a matte of the person
in the middle, or of the one in the box that the user gave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Artefact, Stage, Task
from ..identities import FACES_PER_SECOND, sample_frames
from ..people import Footage, PersonFiles
from ..protocols import Face
from ..video_io import read_video, write_video
from .common import Build


def faces(build: Build, people: Sequence[Footage], frames: int) -> list[Footage]:
    """frames: how many frames of each are used from here on; a detector looks at 8 per second, whatever this says.
    Those without a person are dropped."""
    people = [replace(footage, frames=frames) for footage in people]
    if build.uses_faces:
        return _detect(build, people)
    return _cut_out(build, _crop(build, people))


def _detect(build: Build, people: list[Footage]) -> list[Footage]:
    detector = build.backends.detector
    tasks = [
        Task(
            Stage("faces", 1, detector.id, ".json"),
            footage.label,
            make_faces,
            {"path": footage.source.clip.path},
            {"per_second": FACES_PER_SECOND},
            (footage.source.clip.sha256,),
        )
        for footage in people
    ]
    return [
        replace(footage, faces=found)
        for footage, found in zip(people, build.engine.map(tasks), strict=True)
        if isinstance(found, Artefact)
    ]


def _crop(build: Build, people: list[Footage]) -> list[Footage]:
    side, most = build.recipe.max_side, build.recipe.max_frames
    stage = Stage("faces", 1, "crop@2", ".mp4")
    boxed = [footage for footage in people if footage.box is not None]
    tasks = [
        Task(
            stage,
            footage.label,
            make_crop,
            {"path": footage.source.path, "box": footage.box, "max_side": side, "max_frames": most},
            {"box": list(footage.box), "max_side": side, "max_frames": most},
            (footage.source.file_sha256,),
        )
        for footage in boxed
    ]
    clips = dict(zip([f.label for f in boxed], build.engine.map(tasks), strict=True))
    cut = [f if f.box is None else replace(f, clip=clips[f.label]) for f in people]
    return [footage for footage in cut if isinstance(footage.clip, Artefact)]


def _cut_out(build: Build, people: list[Footage]) -> list[Footage]:
    stage = Stage("faces", 1, "random-walk@2", ".npy")
    tasks = [
        Task(
            stage,
            footage.label,
            make_matte,
            {"files": footage.files},
            {"frames": footage.frames},
            (footage.clip.sha256,),
        )
        for footage in people
    ]
    return [
        replace(footage, matte=matte)
        for footage, matte in zip(people, build.engine.map(tasks), strict=True)
        if isinstance(matte, Artefact)
    ]


def make_faces(target: Path, backends: Any, path: Path) -> dict:
    """Writes a list of [frame, [face, ...]] with face = {box, score, points}, best first; frames count from 0."""
    frames, fps = read_video(path)
    looked_at = sample_frames(len(frames), fps, FACES_PER_SECOND)
    found = backends.detector.detect(frames[looked_at])
    rows = [[int(i), [plain_face(face) for face in row]] for i, row in zip(looked_at, found, strict=True)]
    target.write_text(json.dumps(rows), encoding="utf-8")
    return {"faces": sum(len(row) for _, row in rows)}


def plain_face(face: Face) -> dict:
    points = None if face.points is None else np.asarray(face.points, float).tolist()
    return {"box": [float(side) for side in face.box], "score": float(face.score), "points": points}


def make_crop(
    target: Path, backends: Any, path: Path, box: tuple[float, float, float, float], max_side: int, max_frames: int
) -> dict:
    """The box of every frame of the file as it was given, with even sides of at most `max_side` pixels: of several
    people side by side, each then has as many pixels as one alone."""
    from PIL import Image

    frames, fps = read_video(path, max_frames=max_frames)
    height, width = frames.shape[1:3]
    x0, y0, x1, y1 = (round(side * length) for side, length in zip(box, (width, height) * 2, strict=True))
    x0, y0 = min(x0, width - 2), min(y0, height - 2)
    x1, y1 = max(x1, x0 + 2), max(y1, y0 + 2)
    scale = min(1.0, max_side / max(x1 - x0, y1 - y0))
    size = tuple(max(2, round(scale * side / 2) * 2) for side in (x1 - x0, y1 - y0))
    part = np.stack(
        [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS, box=(x0, y0, x1, y1))) for f in frames]
    )
    write_video(target, part, fps)
    return {"fps": fps, "num_frames": len(part), "height": part.shape[1], "width": part.shape[2]}


def make_matte(target: Path, backends: Any, files: PersonFiles) -> dict:
    from ..backends.light.cutout import check_matte, matte_bytes

    frames = files.load().frames
    alpha = matte_bytes(frames)
    check_matte(frames, alpha)
    np.save(target, alpha)
    return {}
