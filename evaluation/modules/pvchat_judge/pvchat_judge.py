"""ES and DC by a judge, with the judge's name."""

import evaluate
import numpy as np

from pvchat.evaluation.judge import METRICS, open_judges
from pvchat.evaluation.modules import metric_info

DESCRIPTION = "Entity specificity (ES) and descriptive completeness (DC) of answers, 0 to 5, by a language model."
INPUTS = """
Args:
    predictions: answers.
    references: gold answers, one per answer.
    questions: one per answer.
    present: whether the person is in the clip, per answer.
    names: the person's name; one for all, or one per answer.
    model: the judge.
    url: its OpenAI-compatible address. Left out: the model is loaded here.
    allow_third_party: let answers about the person go to an address that is not this computer.
Returns:
    es, dc, invalid, judge, ratings (scores and reasons per answer)
"""


class Judged(evaluate.Metric):
    def _info(self):
        return metric_info(DESCRIPTION, INPUTS)

    def _compute(self, predictions, references, questions, present, names, model, url=None, allow_third_party=False):
        names = [names] * len(predictions) if isinstance(names, str) else names
        rows = zip(predictions, references, questions, present, names, strict=True)
        fields = ("answer", "gold", "question", "present", "subject")
        lines = [{"qa_id": str(i)} | dict(zip(fields, row, strict=True)) for i, row in enumerate(rows)]
        (judge,) = open_judges([] if url is None else [url], [model], allow_third_party=allow_third_party)
        ratings = judge.rate(lines)
        scores = {}
        for name in METRICS:
            valid = [rating[name] for rating in ratings if rating[name] is not None]
            scores[name] = float(np.mean(valid)) if valid else None
        invalid = sum(None in (rating["es"], rating["dc"]) for rating in ratings)
        return scores | {"invalid": invalid, "judge": judge.by, "ratings": ratings}
