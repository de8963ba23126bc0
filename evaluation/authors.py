"""The authors' JSON files as answer lines, so that their results are scored like any others.

Their test script writes, beside each gold `answer`, the model's `generated_answer` (`prediction` in later versions),
and puts the clips under `results` or `data`. A file without model answers (their training and test sets) is scored
with the gold answers in their place: that says nothing about a model, but shows whether every gold answer is read as
its label says, and how one-sided the file is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..dataset_builder.authors_json import TEMPLATE_NAME, category_of
from ..errors import PVChatError
from .scoring import ASKED, GATE, existence_answers, score_lines
from .store import Line, digest

GENERATED = ("generated_answer", "prediction")
KEYS = ("results", "data", "videos")
_BRACKETED = re.compile(r"<[^<>\s][^<>]*>")


def authors_lines(path: str | Path) -> tuple[list[Line], bool]:
    """Answer lines, and whether the answers are a model's (else they are the gold answers).

    Raises:
        PVChatError: the file has another shape, holds no question, or only some questions have a model's answer.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        items = content if isinstance(content, list) else next(content[key] for key in KEYS if key in content)
        split = "test" if "test" in path.stem.lower() else "train"
        lines = [line for index, item in enumerate(items) for line in _lines(item, index, split)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise PVChatError(f"{path} is not a JSON file of the authors' format ({error!r}).") from error
    if not lines:
        raise PVChatError(f"{path} holds no question.")
    without = sum(line["answer"] is None for line in lines)
    if without == len(lines):
        return [{**line, "answer": line["gold"]} for line in lines], False
    if without:
        raise PVChatError(f"{path}: {without} of {len(lines)} questions have no generated_answer; finish the run.")
    return lines, True


def _lines(item: dict[str, Any], index: int, split: str) -> list[Line]:
    video_id = digest(item["video_path"], index)[:12]
    lines = []
    for number, pair in enumerate(item["qa_pairs"]):
        name = _BRACKETED.search(f"{pair['question']} {pair['answer']}")
        answers = [str(pair[key]) for key in GENERATED if pair.get(key) is not None]
        lines.append(
            {
                "qa_id": f"{video_id}-{number:02d}",
                "video_id": video_id,
                "subject": item.get("sks_present") or (name[0] if name else TEMPLATE_NAME),
                "split": split,
                "category": "existence" if pair["is_special"] else category_of(pair["question"]),
                "question": pair["question"],
                "gold": pair["answer"],
                "source": "template" if pair["is_special"] else "vlm",
                "present": bool(item["is_positive"]),
                "origin": "generated" if "ori_video_name" in item else "user",
                "answer": answers[0] if answers else None,
                "margin": None,
            }
        )
    return lines


def score_authors(path: str | Path, seed: int = 0) -> dict[str, Any]:
    """Scores of one of their files; `details.gold` says how many gold answers are read as their clip's label says.

    Raises:
        PVChatError: as `authors_lines`, or the file has no existence question.
    """
    lines, of_model = authors_lines(path)
    reason = "not run: a file of answers comes without a model"
    scores = score_lines(lines, None, dict.fromkeys((*ASKED, GATE), reason), seed)
    gold = [{**line, "answer": line["gold"]} for line in lines if line["category"] == "existence"]
    right = existence_answers(gold).right
    agree = int(right.sum())
    scores["details"] |= {"gold": {"agree": agree, "n": len(right)}, "answers_of": "model" if of_model else "gold"}
    notes = [f"{agree} of {len(right)} gold answers about existence are read as their clip's label says."]
    if not of_model:
        notes.append("The file holds no answers of a model: the gold answers are scored in their place.")
    scores["details"]["findings"] = notes + scores["details"]["findings"]
    return scores
