"""From answer lines to `scores.json`, without a model.

existence    accuracy, balanced accuracy, false accepts, AUROC, ECE of the answers to "is the subject there?"
bleu1/4      of all answers; es_rule, dc_rule: see `rules.py`
bertscore, es, dc    from an encoder and a judge, see `ratings.py`; None with the reason under `details.missing`
categories   per kind of question: BLEU-1, exactness where the truth is known, refusals where the subject is absent
controls     the same for everything that should be worse
paired       by how much the answers beat each control, with interval and p, on the same questions
intervals    95 %, by resampling videos (and subjects, where there are several)
details      what the numbers rest on: test set, methods, agreement of judges, findings, why some are missing
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PVChatError
from ..files import write_json
from ..passport import passport
from . import metrics
from .bootstrap import LEVEL, PERMUTATIONS, RESAMPLES, clustered_intervals, paired_difference
from .findings import find
from .judge import METRICS, agreement
from .presence import ABSENT, PRESENT, UNKNOWN, parse_presence
from .ratings import Ratings, rate
from .rules import rule_scores
from .store import Line
from .store import read_lines as read_with

CATEGORIES = ("appearance", "action", "location")
CONSTANT = {"constant_yes": "Yes.", "constant_no": "No."}
ASKED = ("text_only", "no_adapter", "wrong_adapter", "reference_in_prompt", "reference_as_tokens", "name_swapped")
GATE = "embedding_gate"
CONTROLS = (*CONSTANT, *ASKED, GATE)
EXISTENCE_ONLY = ("name_swapped", GATE)  # the others answer all questions
NOT_COMPUTED = {
    "bertscore": "not computed: it needs an encoder (--bertscore MODEL)",
    "es": "not computed: it needs a judge (--judge URL --judge-model NAME)",
    "dc": "not computed: it needs a judge (--judge URL --judge-model NAME)",
}
FIELDS = (
    "qa_id", "video_id", "subject", "split", "category", "question", "gold", "source", "present", "origin", "answer",
    "margin",
)  # fmt: skip
RULES = ("es_rule", "dc_rule")
ANSWERS, SCORES = "answers.jsonl", "scores.json"
SAID = {PRESENT: 1, ABSENT: 0, UNKNOWN: -1}


def score_lines(
    lines: Sequence[Line],
    controls: dict[str, Sequence[Line]] | None = None,
    missing: dict[str, str] | None = None,
    seed: int = 0,
    ratings: Ratings | None = None,
) -> dict[str, Any]:
    """Scores of the answers and of their controls.

    Args:
        lines: one per question, with the fields in `FIELDS`; of one subject, or of several.
        controls: lines of the controls that were run, by name. Those of several wrong adapters are one list: a score
            is then over all of them.
        missing: why a control was not run, by name.
        seed: of the resampling.
        ratings: of the lines, in their order.

    Returns:
        What `scores.json` holds, without its passport.

    Raises:
        PVChatError: there is no line, or none about existence.
        MissingBackendError: sacrebleu is not installed.
    """
    existing = [line for line in lines if line["category"] == "existence"]
    if not existing:
        raise PVChatError("There is no answer to an existence question to score; evaluate a split that has some.")
    ratings = ratings or Ratings()
    answers = existence_answers(existing)
    existence, of_existence = _existence(lines, seed)
    texts, intervals = _texts(lines, seed)
    rated, of_ratings = _rated(lines, ratings, seed)
    intervals |= of_ratings
    intervals["existence"] = of_existence
    controls = dict(controls or {})
    for name, answer in CONSTANT.items():
        controls[name] = [{**line, "answer": answer, "margin": None} for line in existing]
    found: dict[str, Any] = dict.fromkeys(CONTROLS)
    intervals["controls"] = dict.fromkeys(CONTROLS)
    paired: dict[str, Any] = dict.fromkeys(CONTROLS)
    for name, own in controls.items():
        found[name], intervals["controls"][name] = _existence(own, seed, calibrated=name != GATE)
        if name not in (*CONSTANT, *EXISTENCE_ONLY):
            found[name] |= _texts(own, seed=None)[0]
        paired[name] = paired_lines(existing, own, seed)
    if found["name_swapped"]:
        found["name_swapped"] |= _yes_rates(controls["name_swapped"])
    by_margin = answers._replace(said=(answers.margin > 0).astype(int))
    absent = {name: reason for name, reason in NOT_COMPUTED.items() if rated[name] is None} | ratings.missing
    absent |= {f"controls.{name}": reason for name, reason in (missing or {}).items()}
    subjects = list(dict.fromkeys(line["subject"] for line in lines))
    scores = {
        "existence": existence,
        **texts,
        **rated,
        "controls": found,
        "paired": paired,
        "intervals": intervals,
        "passport": None,
        "details": {
            "subject": subjects[0] if len(subjects) == 1 else f"{len(subjects)} subjects",
            "split": lines[0]["split"],
            "questions": len(lines),
            "videos": len({(line["subject"], line["video_id"]) for line in lines}),
            "true_accept": metrics.true_accept_rate(answers),
            "unknown": metrics.accuracy(answers.said == -1),
            "said": {side: int((answers.said == code).sum()) for side, code in SAID.items()},
            "margin_decision": None if np.isnan(answers.margin).any() else metrics.existence_scores(by_margin),
            "composition": composition(lines),
            "judge": _judge_details(ratings),
            "method": _method(seed),
            "missing": absent,
        },
    }
    scores["details"]["findings"] = find(scores)
    return scores


def composition(lines: Sequence[Line]) -> dict[str, Any]:
    """What the test set is made of: clips by presence and origin, questions by category, subjects."""
    clips = {(line["subject"], line["video_id"]): line for line in lines}.values()
    questions = Counter(line["category"] for line in lines)
    asked = Counter(line["present"] for line in lines if line["category"] == "existence")
    return {
        "subjects": len({line["subject"] for line in lines}),
        "clips_present": sum(line["present"] for line in clips),
        "clips_absent": sum(not line["present"] for line in clips),
        "origins": dict(Counter(line["origin"] for line in clips).most_common()),
        "questions": dict(questions.most_common()),
        "existence_present": asked[True],
        "existence_absent": asked[False],
    }


def paired_lines(first: Sequence[Line], second: Sequence[Line], seed: int) -> dict[str, Any] | None:
    """`paired_difference` of two systems on the existence questions that both answered; None if there are none.

    Several answers of one system to a question (of several wrong adapters) count as their mean.
    """
    rights: list[dict[tuple[str, str], list[float]]] = [{}, {}]
    places: dict[tuple[str, str], Line] = {}
    for system, lines in zip(rights, (first, second), strict=True):
        existing = [line for line in lines if line["category"] == "existence"]
        for line, right in zip(existing, existence_answers(existing).right.tolist(), strict=True):
            key = line["subject"], line["qa_id"]
            system.setdefault(key, []).append(right)
            places.setdefault(key, line)
    keys = [key for key in rights[0] if key in rights[1]]
    return paired_difference(
        [places[key]["video_id"] for key in keys],
        [places[key]["present"] for key in keys],
        *([float(np.mean(system[key])) for key in keys] for system in rights),
        subjects=[places[key]["subject"] for key in keys],
        seed=seed,
    )


def existence_answers(lines: Sequence[Line]) -> metrics.ExistenceAnswers:
    """Arrays of existence lines; what an answer says is read by `parse_presence`.

    A line that was `asked_about` another name is read with that name.
    """
    names = [line.get("asked_about") or line["subject"] for line in lines]
    said = [SAID[parse_presence(line["answer"], name)] for line, name in zip(lines, names, strict=True)]
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
    rules = rule_scores(*([line[name] for line in lines] for name in ("answer", "gold", "subject", "present")))

    def overall(index: np.ndarray) -> dict[str, float | None]:
        bleu = {f"bleu{order}": metrics.bleu_of_counts(counts[index], order) for order in (1, 4)}
        return bleu | {name: float(values[index].mean()) for name, values in rules.items()}

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
        [line["video_id"] for line in lines],
        [line["present"] for line in lines],
        statistic,
        subjects=[line["subject"] for line in lines],
        seed=seed,
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


def _rated(lines: Sequence[Line], ratings: Ratings, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """BERTScore, ES and DC with their intervals; None where they were not computed. Judged by several: the first."""
    columns: dict[str, np.ndarray] = {}
    if ratings.bertscore is not None:
        columns["bertscore"] = ratings.bertscore[:, 2]
    if ratings.judges:
        columns |= zip(METRICS, ratings.judges[0][1].T, strict=True)

    def means(index: np.ndarray) -> dict[str, float | None]:
        picked = {name: values[index] for name, values in columns.items()}
        return {name: None if np.isnan(v).all() else float(np.nanmean(v)) for name, v in picked.items()}

    names = ("bertscore", *METRICS)
    scores: dict[str, Any] = dict.fromkeys(names) | means(np.arange(len(lines)))
    intervals = dict.fromkeys(names) | (_intervals(lines, means, seed) if columns else {})
    if ratings.bertscore is not None:
        precision, recall, f1 = ratings.bertscore.mean(axis=0).tolist()
        empty = sum(not line["answer"].strip() for line in lines)
        scores["bertscore"] = {"f1": f1, "precision": precision, "recall": recall, "empty": empty, **ratings.encoder}
    return scores, intervals


def _judge_details(ratings: Ratings) -> dict[str, Any] | None:
    if not ratings.judges:
        return None
    judges = []
    for by, values in ratings.judges:
        means = {
            name: None if np.isnan(column).all() else float(np.nanmean(column))
            for name, column in zip(METRICS, values.T, strict=True)
        }
        judges.append(by | means | {"invalid": int(np.isnan(values).any(axis=1).sum()), "n": len(values)})
    if len(ratings.judges) < 2:
        return {"judges": judges, "agreement": None}
    (_, first), (_, second) = ratings.judges[:2]
    pairs = zip(METRICS, first.T, second.T, strict=True)
    return {"judges": judges, "agreement": {name: agreement(a, b) for name, a, b in pairs}}


def _yes_rates(lines: Sequence[Line]) -> dict[str, float | None]:
    """How often the other name is said to be there: everywhere, and on clips of the subject."""
    answers = existence_answers(lines)
    return {"says_yes": metrics.accuracy(answers.said == 1), "says_yes_on_subject": metrics.true_accept_rate(answers)}


def _method(seed: int) -> dict[str, Any]:
    return {
        "bleu1": metrics.bleu_signature(1),
        "bleu4": metrics.bleu_signature(4),
        "intervals": f"{LEVEL:.0%} percentile bootstrap of videos within subject and presence, {RESAMPLES} draws",
        "paired": f"two-sided permutation test, answers swapped by video, {PERMUTATIONS} draws",
        "ece_bins": metrics.CALIBRATION_BINS,
        "seed": seed,
    }


# -- files ------------------------------------------------------------------------------------------------------------


def read_lines(path: str | Path) -> list[Line]:
    """Answer lines of a file. A last line that was cut off while it was written is left out.

    Raises:
        PVChatError: the file is missing or holds something else.
    """
    return read_with(path, FIELDS)


def read_controls(path: Path) -> dict[str, list[Line]]:
    """The lines of the controls beside an `answers.jsonl`, by name; raises as `read_lines`."""
    controls: dict[str, list[Line]] = {}
    for file in sorted((path.parent / "controls").glob("*.jsonl")):
        controls.setdefault(file.stem.partition(".")[0], []).extend(read_lines(file))
    return controls


def score_answers(path: str | Path, seed: int = 0, **rating: Any) -> dict[str, Any]:
    """Scores an `answers.jsonl` again, with the controls and ratings beside it. Raises as `score_lines` and `rate`.

    The passport is null: it belongs to the run that asked the model.

    Args:
        rating: `bertscore`, `layer`, `judges`, `progress` of `rate`; without them, ratings that are kept are taken.
    """
    path = Path(path)
    lines, controls = read_lines(path), read_controls(path)
    before = _earlier_scores(path.parent).get("details", {}).get("missing", {})
    missing = {name: before.get(f"controls.{name}", "not run") for name in (*ASKED, GATE) if name not in controls}
    scores = score_lines(lines, controls, missing, seed, rate(lines, path.parent / "ratings", **rating))
    if GATE in controls:
        scores["details"]["method"][GATE] = controls[GATE][0].get("by")
    return scores


def rescore(path: str | Path, command: str, seed: int = 0, **rating: Any) -> dict[str, Any]:
    """`score_answers`, written to `scores.json` beside the answers.

    The passport is that of this scoring; the one of the run that asked the model stands in it as `answers`.
    """
    path = Path(path)
    scores = score_answers(path, seed, **rating)
    asked = (_earlier_scores(path.parent).get("passport") or {}) if path.name == ANSWERS else {}
    config = {
        "answers": path.name,
        "bertscore": scores["bertscore"] and scores["bertscore"]["hash"],
        "judges": [judge["judge"] for judge in (scores["details"]["judge"] or {"judges": ()})["judges"]],
    }
    scores["passport"] = passport(command, config, seed) | {"answers": asked.get("answers") or asked or None}
    write_json(path.parent / SCORES, scores)
    return scores


def _earlier_scores(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / SCORES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
