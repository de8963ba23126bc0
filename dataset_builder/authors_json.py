"""The JSON of the paper's authors, read and written.

    {"data": [{video_name, video_path, sks_present, gender, age, is_positive, ori_video_name?,
               qa_pairs: [{question, answer, is_special}]}]}

In their template files the person is `<sks>` and the top key is "data"; in the files of one person the name stands in
the texts and in `sks_present`, and the top key is "videos". `is_special` marks questions about existence.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from .assemble import LocalDataset
from .engine import hash_text, write_atomically
from .records import STILL_CATEGORIES, QARow, VideoRow

TEMPLATE_NAME = "<sks>"
_APPEARANCE = re.compile(r"\b(wear\w*|cloth\w*|dress\w*|outfit|attire|appearance|look like|looks|garment\w*)\b", re.I)
_LOCATION = re.compile(
    r"\b(where|location|located|place\w*|setting|background|position\w*|environment|surround\w*)\b", re.I
)


def read_authors_json(path: str | Path) -> LocalDataset:
    """Reads one of their files as the split `train` (`test` when the file's name says test).

    Paths stay as written and need not exist here. Raises PVChatError when the file has another shape.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        key = next(k for k in ("data", "videos") if k in content)
        items = content[key]
        subject = TEMPLATE_NAME if key == "data" else next((v["sks_present"] for v in items if v["sks_present"]), "")
        split = "test" if "test" in path.stem.lower() else "train"
        videos = [_row(item, index, subject or TEMPLATE_NAME, split) for index, item in enumerate(items)]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise PVChatError(f"{path} is not a JSON file of the authors' format ({error!r}).") from error
    manifest = {"format": "authors", "top_key": key, "split": split}
    return LocalDataset(subject or TEMPLATE_NAME, manifest, videos, path.parent)


def _row(item: dict[str, Any], index: int, subject: str, split: str) -> VideoRow:
    video_id = hash_text(item["video_path"], index)[:12]
    present = bool(item["is_positive"])
    rows = []
    for number, pair in enumerate(item["qa_pairs"]):
        category = "existence" if pair["is_special"] else category_of(pair["question"])
        rows.append(
            QARow(
                qa_id=f"{video_id}-{number:02d}",
                video_id=video_id,
                subject=subject,
                split=split,
                category=category,
                question=pair["question"],
                answer=pair["answer"],
                subject_present=present,
                source="template" if pair["is_special"] else "vlm",
                refined_by="none",
                still_ok=category in STILL_CATEGORIES,
            )
        )
    known = ("video_path", "is_positive", "qa_pairs")
    return VideoRow(
        video_id=video_id,
        subject=subject,
        split=split,
        subject_present=present,
        origin="user",
        parent_ids=(),
        backend="authors",
        seed=0,
        id_score=None,
        fps=0.0,
        num_frames=0,
        width=0,
        height=0,
        licences=(),
        synthetic="ori_video_name" in item,
        sha256="",
        path=Path(item["video_path"]),
        qa=tuple(rows),
        extra={k: v for k, v in item.items() if k not in known},
    )


def category_of(question: str) -> str:
    """The category of a question that is not about existence, by its words: their files do not say it."""
    if _APPEARANCE.search(question):
        return "appearance"
    return "location" if _LOCATION.search(question) else "action"


def write_authors_json(dataset: LocalDataset, path: str | Path, split: str = "train") -> Path:
    """Writes one split in their format, whole or not at all; returns the path."""
    is_template = dataset.subject == TEMPLATE_NAME
    items = []
    for row in dataset.split(split):
        defaults = {
            "video_name": row.path.name,
            "sks_present": "" if is_template else dataset.subject,
            "gender": "",
            "age": "",
        }
        if row.synthetic and row.parent_ids:
            defaults["ori_video_name"] = row.parent_ids[0]
        pairs = [{"question": q.question, "answer": q.answer, "is_special": q.category == "existence"} for q in row.qa]
        item = {
            **defaults,
            **row.extra,
            "video_path": str(row.path),
            "is_positive": row.subject_present,
            "qa_pairs": pairs,
        }
        items.append(item)
    text = json.dumps({"data" if is_template else "videos": items}, indent=2, ensure_ascii=False)
    path = Path(path)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
