"""What the lmms-eval tasks beside this file call. Needs sacrebleu, which lmms-eval brings along.

Scores are those of pvchat: an answer that takes no side is wrong, false accepts are counted on look-alikes and on
strangers, BLEU-1 is the corpus score of all answers. A score that is not defined on these rows is NaN.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
INSTRUCTION = "Answer in one or two short sentences. If asked whether someone is in the video, begin with Yes or No."
LOOKALIKE, STRANGER = "hard_negative", "random_negative"


def _presence():
    spec = importlib.util.spec_from_file_location("pvchat_presence", FOLDER / "presence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parse_presence = _presence().parse_presence


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    return [str(FOLDER / doc["clip"])]


def doc_to_visual_with_reference(doc: dict[str, Any]) -> list[str]:
    return [str(FOLDER / doc["reference"]), str(FOLDER / doc["clip"])]


def doc_to_no_visual(doc: dict[str, Any]) -> list[str]:
    return []


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return f"{doc['question']} {INSTRUCTION}"


def doc_to_text_with_reference(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return f"The first video shows {doc['subject']}. Answer about the second video only. {doc_to_text(doc)}"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """What each metric is told about one answer; those about existence hear of existence questions only.

    `score` and `video_id` under `accuracy` give lmms-eval its clustered standard error.
    """
    answer = results[0].strip()
    told: dict[str, Any] = {"bleu1": {"answer": answer, "gold": doc["gold"]}}
    if doc["category"] == "existence":
        said = parse_presence(answer, doc["subject"])
        row = {"present": doc["present"], "origin": doc["origin"], "said": said, "right": said == _truth(doc)}
        told |= dict.fromkeys(("balanced_accuracy", "false_accept_lookalike", "false_accept_stranger"), row)
        told["accuracy"] = row | {"score": float(row["right"]), "video_id": doc["video_id"]}
    return told


def _truth(doc: dict[str, Any]) -> str:
    return "present" if doc["present"] else "absent"


# -- aggregation ------------------------------------------------------------------------------------------------------


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def accuracy(rows: list[dict[str, Any]]) -> float:
    return _mean([row["score"] for row in rows])


def balanced_accuracy(rows: list[dict[str, Any]]) -> float:
    sides = [_mean([float(row["right"]) for row in rows if row["present"] == side]) for side in (True, False)]
    return sum(sides) / 2


def _false_accept(rows: list[dict[str, Any]], origin: str) -> float:
    others = [row for row in rows if not row["present"] and row["origin"] == origin]
    return _mean([float(row["said"] == "present") for row in others])


def false_accept_lookalike(rows: list[dict[str, Any]]) -> float:
    return _false_accept(rows, LOOKALIKE)


def false_accept_stranger(rows: list[dict[str, Any]]) -> float:
    return _false_accept(rows, STRANGER)


def bleu1(rows: list[dict[str, Any]]) -> float:
    from sacrebleu.metrics import BLEU

    metric = BLEU(max_ngram_order=1, effective_order=True)
    return metric.corpus_score([row["answer"] for row in rows], [[row["gold"] for row in rows]]).score / 100
