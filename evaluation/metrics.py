"""Scores as pure functions. A score that is not defined for its input (no such clips, one class only) is `None`.

Shape letters: N questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import MissingBackendError

LOOKALIKE, STRANGER = "hard_negative", "random_negative"  # origins of clips without the subject
CALIBRATION_BINS = 15  # Guo et al. 2017
MAX_ORDER = 4
_QUOTES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"'})


class ExistenceAnswers(NamedTuple):
    """Answers to "is the subject there?", one entry per question.

    Args:
        present: (N,) bool, the truth.
        said: (N,) int, what the answer says: 1 there, 0 not there, -1 neither.
        origin: (N,) str, origin of the clip.
        margin: (N,) float64, log-odds of "Yes" against "No"; NaN where there is none.
    """

    present: np.ndarray
    said: np.ndarray
    origin: np.ndarray
    margin: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(N,) bool. An answer that says neither is wrong."""
        return self.said == self.present.astype(int)

    def take(self, index: np.ndarray) -> ExistenceAnswers:
        return ExistenceAnswers(*(values[index] for values in self))


def existence_scores(answers: ExistenceAnswers, calibrated: bool = True) -> dict[str, float | int | None]:
    """All scores of existence questions.

    Args:
        calibrated: whether margins are log-odds; otherwise there is no `ece`.
    """
    return {
        "accuracy": accuracy(answers.right),
        "balanced_accuracy": balanced_accuracy(answers.present, answers.right),
        "false_accept_lookalike": false_accept_rate(answers, LOOKALIKE),
        "false_accept_stranger": false_accept_rate(answers, STRANGER),
        "auroc": auroc(answers.present, answers.margin),
        "ece": expected_calibration_error(answers.present, answers.margin) if calibrated else None,
        "n": len(answers.present),
    }


def accuracy(right: np.ndarray) -> float | None:
    """Share of right answers; `right` is (N,) bool."""
    return int(np.count_nonzero(right)) / len(right) if len(right) else None


def balanced_accuracy(present: np.ndarray, right: np.ndarray) -> float | None:
    """Mean of the accuracies on clips with and without the subject; 0.5 for any constant answer."""
    sides = [accuracy(right[present]), accuracy(right[~present])]
    return None if None in sides else sum(sides) / 2


def false_accept_rate(answers: ExistenceAnswers, origin: str) -> float | None:
    """Share of "the subject is there" on clips of this origin that do not show the subject."""
    chosen = ~answers.present & (answers.origin == origin)
    return accuracy(answers.said[chosen] == 1)


def true_accept_rate(answers: ExistenceAnswers) -> float | None:
    """Share of "the subject is there" on clips that show the subject."""
    return accuracy(answers.said[answers.present] == 1)


def auroc(present: np.ndarray, margin: np.ndarray) -> float | None:
    """Probability that a clip with the subject has the higher margin; a tie counts half. (Mann-Whitney U.)"""
    if np.isnan(margin).any() or not present.any() or present.all():
        return None
    values, inverse, counts = np.unique(margin, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]  # the mean rank of a group of ties
    positives, negatives = int(present.sum()), int((~present).sum())
    wins = ranks[present].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def roc_curve(present: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-accept rates for every threshold from the strictest, both starting at 0 and ending at 1."""
    thresholds = np.unique(margin)[::-1]
    accepted = margin[None, :] >= thresholds[:, None]
    false, true = (accepted[:, side].mean(axis=1) for side in (~present, present))
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def expected_calibration_error(present: np.ndarray, margin: np.ndarray, bins: int = CALIBRATION_BINS) -> float | None:
    """Mean distance between the stated probability of "Yes", `sigmoid(margin)`, and how often it is true.

    Probabilities are put into `bins` of equal width; a bin weighs as many questions as it has.
    """
    if not len(present) or np.isnan(margin).any():
        return None
    stated = 1.0 / (1.0 + np.exp(-np.clip(margin, -60.0, 60.0)))
    index = np.minimum((stated * bins).astype(int), bins - 1)
    weight = np.bincount(index, minlength=bins)
    gaps = np.abs(np.bincount(index, stated, bins) - np.bincount(index, present.astype(float), bins))
    return float(gaps[weight > 0].sum() / len(present))


# -- text -------------------------------------------------------------------------------------------------------------


def normalise_text(text: str) -> str:
    """Lower case, plain quotes, single spaces, no punctuation at the end of words; for comparing answers."""
    text = text.lower().translate(_QUOTES)
    return " ".join(re.sub(r"[.,;:!?\"]+(?=\s|$)", "", text).split())


def exact_match(answers: Sequence[str], golds: Sequence[str]) -> float | None:
    """Share of answers that equal the truth after `normalise_text`."""
    pairs = zip(answers, golds, strict=True)
    return accuracy(np.array([normalise_text(answer) == normalise_text(gold) for answer, gold in pairs]))


def bleu_counts(answers: Sequence[str], golds: Sequence[str]) -> np.ndarray:
    """What corpus BLEU adds up, per answer: (N, 10) int64 of matches and totals for 1- to 4-grams, and both lengths.

    Raises:
        MissingBackendError: sacrebleu is not installed.
    """
    metric = _bleu()(max_ngram_order=MAX_ORDER, effective_order=True)
    counts = np.zeros((len(answers), 2 * MAX_ORDER + 2), np.int64)
    for row, (answer, gold) in enumerate(zip(answers, golds, strict=True)):
        score = metric.sentence_score(answer, [gold])
        counts[row] = [*score.counts, *score.totals, score.sys_len, score.ref_len]
    return counts


def bleu_of_counts(counts: np.ndarray, order: int) -> float | None:
    """Corpus BLEU of up to `order`-grams, 0 to 1, from rows of `bleu_counts`."""
    if not len(counts):
        return None
    total = counts.sum(axis=0).tolist()
    score = _bleu().compute_bleu(
        correct=total[:order],
        total=total[MAX_ORDER : MAX_ORDER + order],
        sys_len=total[-2],
        ref_len=total[-1],
        smooth_method="exp",
        effective_order=True,
        max_ngram_order=order,
    )
    return score.score / 100


def bleu(answers: Sequence[str], golds: Sequence[str], order: int = 1) -> float | None:
    """Corpus BLEU, 0 to 1, with sacrebleu's tokenisation. The paper reports order 1.

    Raises:
        MissingBackendError: sacrebleu is not installed.
    """
    return bleu_of_counts(bleu_counts(answers, golds), order)


def bleu_signature(order: int = 1) -> str:
    """sacrebleu's signature of `bleu` with this order: everything that decides the number, and the version.

    Raises:
        MissingBackendError: sacrebleu is not installed.
    """
    metric = _bleu()(max_ngram_order=order, effective_order=True)
    metric.corpus_score(["a"], [["a"]])  # the number of references is known after a score only
    return f"{metric.get_signature()}|order:{order}"


def _bleu() -> Callable:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise MissingBackendError("BLEU needs sacrebleu: pip install 'pvchat[eval]'.") from error
    return BLEU
