"""questions: what is asked about every clip, and the answers. Existence and refusals come from the bank; what a
generator knows about its clip is the answer; all else is asked of the writer, all questions of a clip at once."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import Artefact, Stage, Task, derive_seed
from ..people import Footage
from ..questions import load_bank
from ..questions.bank import fill
from ..recipe import NEGATIVE_ORIGINS, Questions
from ..records import CATEGORIES, QA, Clip
from .common import Build

DESCRIPTIVE = CATEGORIES[1:]
PLACEHOLDER = re.compile(r"<\w+>|\{\w*\}")  # a model that knows nobody has no name to say


@dataclass(frozen=True)
class Asked:
    """A clip of a split with its questions: existence first, then the descriptive categories."""

    clip: Clip
    split: str
    questions: tuple[QA, ...]


@dataclass(frozen=True)
class _Open:
    """A question for the writer, with "{name}" in it."""

    category: str
    text: str


def questions(build: Build, references: Sequence[Footage], clips: Sequence[Clip], split: str) -> list[Asked]:
    """Questions that nobody can answer are dropped. In the split `test` only what is known is an answer."""
    rows = [_ask(build, clip, _counts(build, clip, split)) for clip in clips]
    written = _write(build, references, clips, rows) if split == "train" else {}
    asked = [
        Asked(clip, split, tuple(_close(build, clip, row, written.get(clip.video_id), split)))
        for clip, row in zip(clips, rows, strict=True)
    ]
    build.engine.report("questions", len(clips), sum(len(one.questions) for one in asked))
    return asked


def _counts(build: Build, clip: Clip, split: str) -> Questions:
    """A clip of one subject that is a negative of another one is asked about like the other negatives."""
    if split == "test":
        return build.recipe.test_questions
    row = build.recipe.row(clip.origin)
    if clip.subject_present or clip.origin in NEGATIVE_ORIGINS:
        return row.questions
    negative = next((build.recipe.row(o) for o in NEGATIVE_ORIGINS if build.recipe.row(o) is not None), None)
    return Questions(row.questions.existence) if negative is None else negative.questions


def _ask(build: Build, clip: Clip, counts: Questions) -> list[QA | _Open]:
    bank, name = load_bank(), clip.subject
    seed = derive_seed(build.seed, build.reference_sha256, "questions", clip.video_id)
    row: list[QA | _Open] = [*bank.existence(name, clip.subject_present, counts.existence, seed)]
    for category in DESCRIPTIVE:
        count = getattr(counts, category)
        if not count:
            continue
        if not clip.subject_present:
            row += bank.refuse(name, category, count, seed)
            continue
        texts = bank.ask(category, count, seed)
        known = (clip.truth or {}).get(category)
        if known is None:
            row += [_Open(category, text) for text in texts]
            continue
        known = [known] if isinstance(known, str) else list(known)
        row += [
            QA(fill(text, name), fill(known[i % len(known)], name), category, "truth") for i, text in enumerate(texts)
        ]
    return row


def _write(
    build: Build, references: Sequence[Footage], clips: Sequence[Clip], rows: Sequence[list[QA | _Open]]
) -> dict[str, list[str]]:
    """The writer's answers to the open questions by video_id. Of several people in a clip, it sees the one meant."""
    writer = build.backends.writer
    if writer is None:
        return {}
    meant = {footage.subject: footage.clip for footage in references}
    tasks = {}
    for clip, row in zip(clips, rows, strict=True):
        texts = [fill(q.text, f"the {build.spec(clip.subject).noun}") for q in row if isinstance(q, _Open)]
        if not texts:
            continue
        shared = len(clip.subjects) > 1
        path, sha256 = (meant[clip.subject].path, meant[clip.subject].sha256) if shared else (clip.path, clip.sha256)
        tasks[clip.video_id] = Task(
            Stage("questions", 1, writer.id, ".json"),
            clip.video_id,
            make_answers,
            {"path": path, "questions": texts},
            {"questions": texts},
            (sha256,),
        )
    answers = build.engine.map(list(tasks.values()))
    return {
        video_id: json.loads(found.path.read_text(encoding="utf-8"))
        for video_id, found in zip(tasks, answers, strict=True)
        if isinstance(found, Artefact)
    }


def make_answers(target: Path, backends: Any, path: Path, questions: list[str]) -> dict:
    answers = list(backends.writer.write(path, questions))
    if len(answers) != len(questions):
        raise ValueError(f"{backends.writer.id} gave {len(answers)} answers to {len(questions)} questions")
    target.write_text(json.dumps(answers), encoding="utf-8")
    return {}


def _close(build: Build, clip: Clip, row: list[QA | _Open], written: list[str] | None, split: str) -> list[QA]:
    """The questions that have an answer."""
    answers = iter(written or ())
    closed = []
    for one in row:
        if isinstance(one, QA):
            closed.append(one)
            continue
        answer = next(answers, None)
        if answer is not None and answer.strip() and not PLACEHOLDER.search(answer):
            closed.append(QA(fill(one.text, clip.subject), answer.strip(), one.category, "vlm"))
            continue
        reason = f"nobody to answer about {one.category}"
        if answer is not None:
            reason = "a placeholder in the answer" if answer.strip() else "empty answer"
        elif split == "test":
            reason = f"no known answer about {one.category}"
        build.engine.drop("questions", f"{clip.video_id}: {one.text}", reason)
    return closed
