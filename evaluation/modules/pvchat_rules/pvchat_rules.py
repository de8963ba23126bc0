"""ES and DC by rules: cheap, repeatable, crude."""

import evaluate

from pvchat.evaluation.modules import metric_info
from pvchat.evaluation.rules import rule_scores

DESCRIPTION = "Deterministic stand-ins for judged ES and DC, 0 to 5; not comparable with a judge's scores."
INPUTS = """
Args:
    predictions: answers.
    references: gold answers, one per answer.
    names: the person's name; one for all, or one per answer.
    present: whether the person is in the clip, per answer.
Returns:
    es_rule, dc_rule
"""


class Rules(evaluate.Metric):
    def _info(self):
        return metric_info(DESCRIPTION, INPUTS)

    def _compute(self, predictions, references, names, present):
        names = [names] * len(predictions) if isinstance(names, str) else names
        return {name: float(v.mean()) for name, v in rule_scores(predictions, references, names, present).items()}
