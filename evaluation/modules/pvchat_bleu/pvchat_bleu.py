"""BLEU-1 and BLEU-4 by sacrebleu, with signatures."""

import evaluate

from pvchat.evaluation.metrics import bleu, bleu_signature
from pvchat.evaluation.modules import metric_info

DESCRIPTION = "Corpus BLEU-1 and BLEU-4 of answers, 0 to 1, by sacrebleu."
INPUTS = """
Args:
    predictions: answers.
    references: gold answers, one per answer.
Returns:
    bleu1, bleu4, signatures
"""


class Bleu(evaluate.Metric):
    def _info(self):
        return metric_info(DESCRIPTION, INPUTS)

    def _compute(self, predictions, references):
        scores = {f"bleu{order}": bleu(predictions, references, order) for order in (1, 4)}
        return scores | {"signatures": [bleu_signature(1), bleu_signature(4)]}
