"""Existence accuracy of free-text answers, with what plain accuracy hides."""

import evaluate
import numpy as np

from pvchat.evaluation import parse_presence
from pvchat.evaluation.metrics import ExistenceAnswers, existence_scores
from pvchat.evaluation.modules import metric_info

DESCRIPTION = "Whether answers say rightly that a person is in a video: accuracy, balanced accuracy, false accepts."
INPUTS = """
Args:
    predictions: answers, free text.
    references: whether the person is there.
    names: the person's name as it stands in the answers, such as "<Nz>"; one for all, or one per answer.
    origins: kind of clip per answer; "hard_negative" is a look-alike, "random_negative" a stranger. May be left out.
    margins: log-odds of "Yes" against "No" per answer. May be left out.
Returns:
    accuracy, balanced_accuracy, false_accept_lookalike, false_accept_stranger, auroc, ece, n
"""
SAID = {"present": 1, "absent": 0, "unknown": -1}


class Existence(evaluate.Metric):
    def _info(self):
        return metric_info(DESCRIPTION, INPUTS, "bool")

    def _compute(self, predictions, references, names, origins=None, margins=None):
        names = [names] * len(predictions) if isinstance(names, str) else names
        said = [SAID[parse_presence(answer, name)] for answer, name in zip(predictions, names, strict=True)]
        answers = ExistenceAnswers(
            present=np.array(references, bool),
            said=np.array(said, int),
            origin=np.array(origins or [""] * len(predictions), str),
            margin=np.full(len(predictions), np.nan) if margins is None else np.array(margins, float),
        )
        return existence_scores(answers)
