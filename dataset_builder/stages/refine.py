"""refine: the generic words for the subject in described answers become the name."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine import Artefact, Stage, Task
from ..records import QA, QARow, SubjectSpec, VideoRow
from .common import Build
from .questions import Asked

DESCRIBED = ("vlm", "truth")  # sources of the answers that are refined; the bank's name the subject already


def refine(build: Build, asked: Sequence[Asked]) -> list[VideoRow]:
    """The rows of the dataset. Answers that could not be refined stay and say so (`refined_by` is "none")."""
    stage = Stage("refine", 1, build.backends.refiner.id, ".json")
    tasks = {}
    for one in asked:
        described = [qa for qa in one.questions if qa.source in DESCRIBED]
        if not described:
            continue
        spec = build.spec(one.clip.subject)
        about = {"name": spec.name, "noun": spec.noun, "pronouns": list(spec.pronouns)}
        texts = [qa.to_json() for qa in described]
        args = {"questions": described, "spec": replace(spec, consent=None, box=None, photo=None)}
        params = {"about": about, "questions": texts}
        tasks[one.clip.video_id] = Task(stage, one.clip.video_id, make_refined, args, params, (one.clip.sha256,))
    if not tasks:
        build.engine.skip("refine", "no answer describes the subject")
    refined = zip(tasks, build.engine.map(list(tasks.values())), strict=True)
    found = {video_id: artefact for video_id, artefact in refined if isinstance(artefact, Artefact)}
    rows = []
    for one in asked:
        answers = iter(_read(found[one.clip.video_id].path) if one.clip.video_id in found else ())
        rows.append(_row(one, [next(answers, qa) if qa.source in DESCRIBED else qa for qa in one.questions]))
    for name, count in Counter(key for art in found.values() for key in art.meta["failed"]).items():
        build.refine_failures[name] += count
    return rows


def make_refined(target: Path, backends: Any, questions: list[QA], spec: SubjectSpec) -> dict:
    """Returns under "failed" why replies of a language model were not taken, one entry per reply."""
    refiner = backends.refiner
    before = Counter(getattr(refiner, "failed", ()))
    refined = [refiner.refine(qa, spec).to_json() for qa in questions]
    target.write_text(json.dumps(refined, ensure_ascii=False), encoding="utf-8")
    return {"failed": sorted((Counter(getattr(refiner, "failed", ())) - before).elements())}


def _read(path: Path) -> list[QA]:
    return [QA.from_json(data) for data in json.loads(path.read_text(encoding="utf-8"))]


def _row(one: Asked, questions: Sequence[QA]) -> VideoRow:
    clip = one.clip
    rows = tuple(
        QARow(
            qa_id=f"{clip.video_id}-{number:02d}",
            video_id=clip.video_id,
            subject=clip.subject,
            split=one.split,
            category=qa.category,
            question=qa.question,
            answer=qa.answer,
            subject_present=clip.subject_present,
            source=qa.source,
            refined_by=qa.refined_by,
            still_ok=qa.still_ok,
        )
        for number, qa in enumerate(questions)
    )
    fields = {f.name: getattr(clip, f.name) for f in dataclasses.fields(clip) if f.name != "truth"}
    return VideoRow(**fields, split=one.split, qa=rows)
