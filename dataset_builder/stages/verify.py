"""verify: does every generated clip look like who it should be? By the embedder's own thresholds a clip is kept, made
again with another seed, or dropped with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Artefact, Reject, Stage, Task, hash_text
from ..people import Footage
from ..protocols import Person
from ..records import Clip
from ..video_io import read_video
from .common import NOT_NEEDED, Build, Made, Shot

ATTEMPTS = 3  # seeds that are tried before a clip is given up


@dataclass(frozen=True)
class Verdict:
    """What was decided about a clip, for the contact sheets. reason: why it was dropped; None = kept."""

    shot: Shot
    path: Path
    video_id: str
    id_score: float | None
    reason: str | None


def verify(
    build: Build,
    references: Sequence[Footage],
    shots: Sequence[Shot],
    made: Sequence[Made],
    remake: Callable[[Build, list[Shot]], list[Made]],
) -> tuple[list[Clip], list[Verdict]]:
    """The clips that were kept, in the order of the shots, and what was decided about each.

    made: the clips of the shots, as far as they could be made. remake: makes clips of shots with another seed.
    Where a video shows several people to learn, the clips of each are also clips without the others.
    """
    if not shots:
        build.engine.skip("verify", NOT_NEEDED)
    order = {_key(shot): number for number, shot in enumerate(shots)}
    kept: list[tuple[Made, float]] = []
    verdicts: list[Verdict] = []
    waiting = list(shots)
    for attempt in range(ATTEMPTS):
        good, judged = _judge(build, references, made)
        kept += good
        verdicts += judged
        done = {_key(one.shot) for one, _ in kept}
        missed = [shot for shot in waiting if _key(shot) not in done and shot.style != "found"]
        waiting = [_again(shot, [one.shot for one, _ in kept]) for shot in missed]
        if not waiting or attempt + 1 == ATTEMPTS:
            break
        made = remake(build, waiting)
    kept.sort(key=lambda pair: order[_key(pair[0].shot)])
    shared, judged = _judge(build, references, list(_about_the_others(build, [one for one, _ in kept])))
    clips = [clip_of(build, one, score) for one, score in kept + shared]
    return clips, verdicts + judged


def _again(shot: Shot, kept: Sequence[Shot]) -> Shot:
    """The shot with another seed. It shows somebody of whom clips could be made, where it need not show the subject:
    the picture of a person may be useless to a generator with every seed."""
    able = [one for one in kept if (one.subject, one.origin, one.style) == (shot.subject, shot.origin, shot.style)]
    if shot.present or not able:
        return shot.again()
    return replace(shot.again(), footage=able[shot.index % len(able)].footage)


def _key(shot: Shot) -> tuple:
    return shot.subject, shot.origin, shot.index


def _about_the_others(build: Build, kept: list[Made]):
    for spec in build.subjects:
        for one in kept:
            if one.shot.footage.subject not in (None, spec.name):
                yield replace(one, shot=replace(one.shot, subject=spec.name))


def _judge(
    build: Build, references: Sequence[Footage], made: Sequence[Made]
) -> tuple[list[tuple[Made, float]], list[Verdict]]:
    embedder = build.backends.embedder
    like = {footage.subject: footage.embedding for footage in references}
    tasks = [_score(build, one, like[one.shot.subject]) for one in made]
    kept, verdicts = [], []
    for one, found in zip(made, build.engine.map(tasks), strict=True):
        score = found.meta["score"] if isinstance(found, Artefact) else None
        reason = found.reason if isinstance(found, Reject) else None
        if score is not None and one.shot.present and score < embedder.different:
            reason = f"does not look like the subject (similarity below {embedder.different})"
        if score is not None and not one.shot.present and score >= embedder.same:
            reason = f"looks like the subject (similarity at or above {embedder.same})"
        if score is not None and reason is not None:
            build.engine.drop("verify", one.shot.label, reason, made=True)
        if reason is None:
            kept.append((one, score))
        verdicts.append(Verdict(one.shot, one.clip.path, video_id(one), score, reason))
    return kept, verdicts


def _score(build: Build, one: Made, reference: Artefact) -> Task:
    frames = build.recipe.verified_frames
    return Task(
        Stage("verify", 1, build.backends.embedder.id, ".json"),
        one.shot.label,
        make_score,
        {"path": one.clip.path, "reference": reference.path, "frames": frames},
        {"frames": frames},
        (one.clip.sha256, reference.sha256),
    )


def make_score(target: Path, backends: Any, path: Path, reference: Path, frames: int) -> dict:
    """The cosine of the clip's embedding and the reference's."""
    shown = Person(*read_video(path, max_frames=frames))
    score = float(backends.embedder.embed(shown) @ np.load(reference))
    target.write_text(json.dumps(score), encoding="utf-8")
    return {"score": round(score, 6)}


def video_id(one: Made) -> str:
    return hash_text(one.shot.subject, one.shot.origin, one.shot.index, one.clip.sha256)[:12]


def clip_of(build: Build, one: Made, id_score: float | None, truth: dict | None = None) -> Clip:
    """The record of a clip. truth: what is known about it, if its generator did not say."""
    shot, meta = one.shot, one.clip.meta
    synthetic = one.backend != "none"
    seen = shot.footage.subject
    return Clip(
        video_id=video_id(one),
        path=one.clip.path,
        sha256=one.clip.sha256,
        origin=shot.origin,
        subject_present=shot.present,
        parent_ids=(shot.parent,),
        backend=one.backend,
        seed=shot.seed(build) if synthetic else 0,
        fps=float(meta["fps"]),
        num_frames=meta["num_frames"],
        width=meta["width"],
        height=meta["height"],
        synthetic=synthetic,
        id_score=id_score,
        licences=build.backends.licences_of(shot.style),
        truth=meta.get("truth") if truth is None else truth,
        subject=shot.subject,
        subjects=() if seen is None else (seen,),
    )
