"""What an encoder (BERTScore) and judges (ES, DC) say about answers, kept in files beside the answers.

    ratings/bertscore.jsonl    {"qa_id", "key", "by", "precision", "recall", "f1"}
    ratings/judge-1.jsonl      {"qa_id", "key", "by", "es", "es_reason", "dc", "dc_reason"}; judge-2.jsonl, ...

A rating belongs to the texts it was made from: the key covers them, so that ratings of other answers are never taken.
Scoring without an encoder or a judge takes what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingBackendError, PVChatError
from .bertscore import BertScore
from .judge import METRICS, Judge
from .store import Line, collect, digest, earlier

BERTSCORE_FILE = "bertscore.jsonl"
BERTSCORE_FIELDS = ("precision", "recall", "f1")
ANSWERS_AT_ONCE = 16  # between two writes
INVALID = "invalid:"  # before the key of a rating that the judge did not give; it is asked for again


@dataclass(frozen=True)
class Ratings:
    """Ratings of N answers.

    Args:
        bertscore: (N, 3) precision, recall, F1; `None`: there are none.
        encoder: `backbone`, `layer`, `hash` of what made them.
        judges: per judge, what it is and (N, 2) ES and DC, NaN where it gave no valid score.
        missing: why `bertscore`, `es`, `dc` or `agreement` (of two judges) are not there.
    """

    bertscore: np.ndarray | None = None
    encoder: dict[str, Any] | None = None
    judges: tuple[tuple[dict[str, Any], np.ndarray], ...] = ()
    missing: dict[str, str] = field(default_factory=dict)


def rate(
    lines: Sequence[Line],
    folder: Path,
    bertscore: str | None = None,
    layer: int | None = None,
    judges: Sequence[Judge] = (),
    progress: bool = False,
) -> Ratings:
    """Rates the answers, or takes the ratings that are in `folder` already.

    An encoder that cannot be had and a judge that cannot be reached leave their score absent, with the reason: the
    answers, which cost more, are not lost for it. The same call goes on where it stopped.

    Args:
        bertscore, layer: see `BertScore`; without, kept ratings are taken.
        judges: without any, kept ratings are taken.

    Raises:
        PVChatError: the encoder has no such layer.
    """
    missing: dict[str, str] = {}
    encoder, pairs = None, None
    if bertscore is not None:
        try:
            scorer = BertScore(bertscore, layer)
            rows = _rated(
                folder / BERTSCORE_FILE,
                lines,
                scorer.describe(),
                _bertscore(scorer),
                "BERTScore" if progress else None,
            )
            encoder, pairs = scorer.describe(), _values(rows, BERTSCORE_FIELDS)
        except MissingBackendError as error:
            missing["bertscore"] = str(error)
    elif found := _kept(folder / BERTSCORE_FILE, lines):
        encoder, pairs = found[0]["by"], _values(found, BERTSCORE_FIELDS)
    rated = []
    for number, judge in enumerate(judges, 1):
        try:
            title = f"judge {number}" if progress else None
            rows = _rated(folder / f"judge-{number}.jsonl", lines, judge.by, judge.rate, title)
            rated.append((judge.by, _values(rows, METRICS)))
        except PVChatError as error:
            reason = f"judge {number} stopped, and the same command goes on there: {error}"
            missing |= dict.fromkeys(["agreement"] if rated else METRICS, reason)
            break
    if not judges:
        kept = [_kept(path, lines) for path in sorted(folder.glob("judge-*.jsonl"))]
        rated = [(rows[0]["by"], _values(rows, METRICS)) for rows in kept if rows]
    return Ratings(pairs, encoder, tuple(rated), missing)


def _rated(
    path: Path, lines: Sequence[Line], by: dict[str, Any], rater: Callable[[Sequence[Line]], list[Line]], title
) -> list[Line]:
    """One rating per line; every answer is a "video" of its own, as they are rated alone."""
    alone = [{**line, "video_id": line["qa_id"]} for line in lines]

    def marked(part: Sequence[Line]) -> list[Line]:
        rows = zip(part, rater(part), strict=True)
        return [row | {"key": INVALID + _key(by, line)} if None in row.values() else row for line, row in rows]

    return collect(path, alone, lambda line: _key(by, line), marked, title, ANSWERS_AT_ONCE)


def _key(by: dict[str, Any], line: Line) -> str:
    return digest(by, line["question"], line["gold"], line["answer"], line["present"])


def _bertscore(scorer: BertScore) -> Callable[[Sequence[Line]], list[Line]]:
    def rater(part: Sequence[Line]) -> list[Line]:
        scores = scorer.score([line["answer"] for line in part], [line["gold"] for line in part])
        return [
            {"qa_id": line["qa_id"], "by": scorer.describe()} | dict(zip(BERTSCORE_FIELDS, row, strict=True))
            for line, row in zip(part, scores.tolist(), strict=True)
        ]

    return rater


def _kept(path: Path, lines: Sequence[Line]) -> list[Line]:
    """The ratings of these lines in a file; nothing if one of them was made from another answer."""
    known = {row["qa_id"]: row for row in earlier(path) if "by" in row}
    rows = [known.get(line["qa_id"]) for line in lines]
    pairs = zip(rows, lines, strict=True)
    fits = all(row and row["key"].removeprefix(INVALID) == _key(row["by"], line) for row, line in pairs)
    return rows if fits else []


def _values(rows: Sequence[Line], fields: Sequence[str]) -> np.ndarray:
    """(N, F) float64, NaN for None."""
    return np.array([[np.nan if row[name] is None else row[name] for name in fields] for row in rows], float)
