"""From answer lines to `scores.json`, without a model.

existence    accuracy, balanced accuracy, false accepts, AUROC, ECE of the answers to "is the subject there?"
bleu1/4      of all answers
categories   per kind of question: BLEU-1, exactness where the truth is known, refusals where the subject is absent
controls     the same for everything that should be worse
intervals    95 %, by resampling videos
details      what the numbers rest on, and why some are missing
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PVChatError
from . import metrics
from .bootstrap import clustered_intervals
from .presence import ABSENT, PRESENT, parse_presence

Line = dict[str, Any]

CATEGORIES = ("appearance", "action", "location")
CONSTANT = {"constant_yes": "Yes.", "constant_no": "No."}
ASKED = ("text_only", "no_adapter", "wrong_adapter")
GATE = "embedding_gate"
CONTROLS = (*CONSTANT, *ASKED, "reference_in_prompt", GATE)
NOT_COMPUTED = {
    "bertscore": "not computed: it needs an encoder model",
    "es": "not computed: it needs a judge model",
    "dc": "not computed: it needs a judge model",
    "controls.reference_in_prompt": "not computed: this model reads one video per prompt",
}
FIELDS = (
    "qa_id", "video_id", "subject", "split", "category", "question", "gold", "source", "present", "origin", "answer",
    "margin",
)  # fmt: skip
_SIDES = {PRESENT: 1, ABSENT: 0}


def score_lines(
    lines: Sequence[Line],
    controls: dict[str, Sequence[Line]] | None = None,
    missing: dict[str, str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of the answers and of their controls.

    Args:
        lines: one per question, with the fields in `FIELDS`.
        controls: lines of the controls that were run, by name. Those of several wrong adapters are one list: a score
            is then over all of them.
        missing: why a control was not run, by name.
        seed: of the resampling.

    Returns:
        What `scores.json` holds, without its passport.

    Raises:
        PVChatError: there is no line, or none about existence.
        MissingBackendError: sacrebleu is not installed.
    """
    existing = [line for line in lines if line["category"] == "existence"]
    if not existing:
        raise PVChatError("There is no answer to an existence question to score; evaluate a split that has some.")
    answers = existence_answers(existing)
    existence, of_existence = _existence(lines, seed)
    texts, intervals = _texts(lines, seed)
    intervals["existence"] = of_existence
    controls = dict(controls or {})
    for name, answer in CONSTANT.items():
        controls[name] = [{**line, "answer": answer, "margin": None} for line in existing]
    found: dict[str, Any] = dict.fromkeys(CONTROLS)
    intervals["controls"] = dict.fromkeys(CONTROLS)
    for name, own in controls.items():
        found[name], intervals["controls"][name] = _existence(own, seed, calibrated=name != GATE)
        if name in ASKED:
            found[name] |= _texts(own, seed=None)[0]
    by_margin = answers._replace(said=(answers.margin > 0).astype(int))
    reasons = NOT_COMPUTED | {f"controls.{name}": reason for name, reason in (missing or {}).items()}
    return {
        "existence": existence,
        **texts,
        "bertscore": None,
        "es": None,
        "dc": None,
        "controls": found,
        "intervals": intervals,
        "passport": None,
        "details": {
            "subject": lines[0]["subject"],
            "split": lines[0]["split"],
            "questions": len(lines),
            "videos": len({line["video_id"] for line in lines}),
            "true_accept": metrics.true_accept_rate(answers),
            "unknown": metrics.accuracy(answers.said == -1),
            "margin_decision": None if np.isnan(answers.margin).any() else metrics.existence_scores(by_margin),
            "missing": reasons,
        },
    }


def existence_answers(lines: Sequence[Line]) -> metrics.ExistenceAnswers:
    """Arrays of existence lines; what an answer says is read by `parse_presence`."""
    said = [_SIDES.get(parse_presence(line["answer"], line["subject"]), -1) for line in lines]
    margin = [np.nan if line["margin"] is None else line["margin"] for line in lines]
    return metrics.ExistenceAnswers(
        present=np.array([line["present"] for line in lines], bool),
        said=np.array(said, int),
        origin=np.array([line["origin"] for line in lines], str),
        margin=np.array(margin, float),
    )


def _existence(
    lines: Sequence[Line], seed: int, calibrated: bool = True
) -> tuple[dict[str, Any], dict[str, list[float] | None]]:
    """Existence scores of one system, and their intervals."""
    existing = [line for line in lines if line["category"] == "existence"]
    answers = existence_answers(existing)

    def scores(index: np.ndarray) -> dict[str, Any]:
        return metrics.existence_scores(answers.take(index), calibrated)

    whole = scores(np.arange(len(existing)))
    intervals = _intervals(existing, lambda index: {k: v for k, v in scores(index).items() if k != "n"}, seed)
    return whole, intervals


def _texts(lines: Sequence[Line], seed: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """BLEU of all answers and scores per category, and their intervals (none without a seed)."""
    counts = metrics.bleu_counts([line["answer"] for line in lines], [line["gold"] for line in lines])
    everything = np.arange(len(lines))

    def overall(index: np.ndarray) -> dict[str, float | None]:
        return {f"bleu{order}": metrics.bleu_of_counts(counts[index], order) for order in (1, 4)}

    scores: dict[str, Any] = overall(everything) | {"categories": {}}
    intervals: dict[str, Any] = {"categories": {}}
    if seed is not None:
        intervals |= _intervals(lines, overall, seed)
    for category in CATEGORIES:
        chosen = np.array([line["category"] == category for line in lines])
        own = [line for line in lines if line["category"] == category]
        flags, own_counts = _category_flags(own), counts[chosen]

        def of_category(index: np.ndarray, counts=own_counts, flags=flags) -> dict[str, float | None]:
            shares = {name: metrics.accuracy(hit[index][counted[index]]) for name, (hit, counted) in flags.items()}
            return {"bleu1": metrics.bleu_of_counts(counts[index], 1), **shares}

        numbers = {f"{name}_n": int(counted.sum()) for name, (_, counted) in flags.items()}
        scores["categories"][category] = {"n": len(own), **of_category(np.arange(len(own))), **numbers}
        if seed is not None:
            intervals["categories"][category] = _intervals(own, of_category, seed)
    return scores, intervals


def _intervals(lines: Sequence[Line], statistic, seed: int) -> dict[str, list[float] | None]:
    return clustered_intervals(
        [line["video_id"] for line in lines], [line["present"] for line in lines], statistic, seed=seed
    )


def _category_flags(lines: Sequence[Line]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per score: which answers hit, and which count for it.

    `exact`: equal to the truth, where it is known. `refused`: says that the subject is not there, where it is not.
    """
    exact = [metrics.normalise_text(line["answer"]) == metrics.normalise_text(line["gold"]) for line in lines]
    refused = [parse_presence(line["answer"], line["subject"]) == ABSENT for line in lines]
    known = [line["source"] == "truth" for line in lines]
    absent = [not line["present"] for line in lines]
    return {
        "exact": (np.array(exact, bool), np.array(known, bool)),
        "refused": (np.array(refused, bool), np.array(absent, bool)),
    }


def answered(line: Line, reply) -> Line:
    """The line with a `Reply` of the model."""
    return {**line, "answer": reply.text, "margin": reply.margin}


# -- files ------------------------------------------------------------------------------------------------------------


def read_lines(path: str | Path) -> list[Line]:
    """Answer lines of a file. A last line that was cut off while it was written is left out.

    Raises:
        PVChatError: the file is missing or holds something else.
    """
    path = Path(path)
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise PVChatError(f"{path} cannot be read ({error.strerror}); evaluate the adapter first.") from error
    lines = []
    for number, text in enumerate(texts[:-1], 1):
        try:
            line = json.loads(text)
            lacking = [name for name in FIELDS if name not in line]
        except (ValueError, TypeError):
            lacking = ["JSON"]
        if lacking:
            raise PVChatError(f"{path}, line {number}, has no {', '.join(lacking)}; evaluate the adapter again.")
        lines.append(line)
    return lines


def score_answers(path: str | Path, seed: int = 0) -> dict[str, Any]:
    """Scores an `answers.jsonl` again, with the controls in the folder `controls` beside it. Raises as `score_lines`.

    The passport is null: it belongs to the run that asked the model.
    """
    path = Path(path)
    controls: dict[str, list[Line]] = {}
    for file in sorted((path.parent / "controls").glob("*.jsonl")):
        controls.setdefault(file.stem.partition(".")[0], []).extend(read_lines(file))
    missing = {name: "not run" for name in (*ASKED, GATE) if name not in controls}
    return score_lines(read_lines(path), controls, missing, seed)
