"""Dataset folders with invented clips, written in milliseconds: for what only looks at rows and files."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from pvchat.dataset_builder import ConsentRecord, LocalDataset, QARow, VideoRow, assemble_dataset
from pvchat.dataset_builder.consent import consent_id

RECORD = ConsentRecord("Noor Zuiderveld", "2026-01-31", "train a model for me; publish the dataset")
PLAN = (
    # split, origin, present, backend, answers about (source of the descriptive ones)
    ("train", "original", True, "none", "vlm"),
    ("train", "scene", True, "composite@2", "vlm"),
    ("train", "animated", True, "warp2d@2", "truth"),
    ("train", "hard_negative", False, "warp2d@2", None),
    ("train", "random_negative", False, "none", None),
    ("test", "user", True, "none", None),
    ("test", "hard_negative", False, "none", None),
)


def clip_bytes(*key: Any, size: int = 200) -> bytes:
    """Bytes that stand for a clip; the same key gives the same bytes."""
    return random.Random(repr(key)).randbytes(size)


def write_dataset(
    folder: Path,
    name: str = "<Nz>",
    *,
    consent: ConsentRecord | None = None,
    plan: tuple = PLAN,
    negative_source: bytes | None = None,
    licences: tuple[str, ...] = ("Apache-2.0",),
    clip_size: int = 200,
    **manifest: Any,
) -> LocalDataset:
    """A dataset of one person. consent: of a real person; None = drawn. negative_source: the file that the hard
    negatives were made from."""
    clips = folder.parent / f".clips-{folder.name}"
    clips.mkdir(parents=True)
    reference = hashlib.sha256(reference_bytes(name)).hexdigest()
    rows = []
    for number, (split, origin, present, backend, source) in enumerate(plan):
        content = clip_bytes(name, number, size=clip_size)
        video_id = hashlib.sha256(content).hexdigest()[:12]
        path = clips / f"{number}.mp4"
        path.write_bytes(content)
        parents = (reference,) if present and split == "train" else (hashlib.sha256(content + b"p").hexdigest(),)
        if origin == "hard_negative" and split == "train" and negative_source is not None:
            parents = (hashlib.sha256(negative_source).hexdigest(),)
        rows.append(
            VideoRow(
                video_id=video_id,
                subject=name,
                split=split,
                subject_present=present,
                origin=origin,
                parent_ids=parents,
                backend=backend,
                seed=number,
                id_score=None,
                fps=8.0,
                num_frames=16,
                width=64,
                height=64,
                licences=("user",) if backend == "none" else licences,
                synthetic=backend != "none",
                sha256=hashlib.sha256(content).hexdigest(),
                path=path,
                qa=_questions(name, video_id, split, present, source),
            )
        )
    record = consent or ConsentRecord.for_fiction()
    full = {
        "created_by": "pvchat 0",
        "consent_id": consent_id(record),
        "fictional": record.fictional,
        "recipe": {"name": "light", "rows": []},
        "backends": {"scene": "composite@2"},
        "writer": "vlm:base",
        "seed": 0,
        "build_key": "b" * 64,
        "dropped": [{"stage": "gallery", "item": "uncle-harry.jpg", "reason": "no person"}],
    }
    return assemble_dataset(name, rows, folder, full | manifest)


def reference_bytes(name: str) -> bytes:
    """The file that stands for a person's reference video."""
    return clip_bytes("reference of", name)


def _questions(name: str, video_id: str, split: str, present: bool, source: str | None) -> tuple[QARow, ...]:
    asked = [("existence", f"Is {name} here?", f"{'Yes' if present else 'No'}, {name} is.", "template", "none")]
    if source is not None:
        refined = "rules" if source == "vlm" else "none"
        asked.append(("action", f"What is {name} doing?", f"{name} waves.", source, refined))
        asked.append(("location", f"Where is {name}?", "By the sea.", source, "none"))
    return tuple(
        QARow(
            qa_id=f"{video_id}-{number:02d}",
            video_id=video_id,
            subject=name,
            split=split,
            category=category,
            question=question,
            answer=answer,
            subject_present=present,
            source=said_by,
            refined_by=refined_by,
            still_ok=category == "existence",
        )
        for number, (category, question, answer, said_by, refined_by) in enumerate(asked)
    )
