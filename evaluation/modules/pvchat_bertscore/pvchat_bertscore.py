"""BERTScore by bert-score, with everything that decides the number."""

import evaluate

from pvchat.evaluation.bertscore import BertScore
from pvchat.evaluation.modules import metric_info

DESCRIPTION = "BERTScore of answers with its backbone and layer; an empty answer scores 0."
INPUTS = """
Args:
    predictions: answers.
    references: gold answers, one per answer.
    model: encoder, a folder or a name on the Hub, such as roberta-large.
    layer: whose outputs are compared. Left out: bert-score's choice for the model, else the last.
Returns:
    precision, recall, f1, backbone, layer, hash, empty (how many answers are)
"""


class BertScoreOfAnswers(evaluate.Metric):
    def _info(self):
        return metric_info(DESCRIPTION, INPUTS)

    def _compute(self, predictions, references, model, layer=None):
        scorer = BertScore(model, layer)
        means = scorer.score(predictions, references).mean(axis=0).tolist()
        empty = sum(not answer.strip() for answer in predictions)
        return dict(zip(("precision", "recall", "f1"), means, strict=True)) | scorer.describe() | {"empty": empty}
