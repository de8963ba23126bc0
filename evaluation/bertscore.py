"""BERTScore (Zhang et al. 2020) of answers, by the package bert-score.

The number means nothing without its backbone, the layer and the versions, so they travel with it. Layers are those
that bert-score chose for the models it knows (roberta-large: 17); of any other model the last layer is taken. There is
no idf weighting and no rescaling, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingBackendError, PVChatError

BATCH = 64
NO_LIMIT = 100_000  # what a tokenizer says that was saved without a limit is larger


class BertScore:
    """Scores answers with one encoder.

    Args:
        model: a folder or a name on the Hub, such as roberta-large.
        layer: whose outputs are compared; `None` as said above.

    Raises:
        MissingBackendError: bert-score is not installed, or the encoder is not to be had here.
        PVChatError: the encoder has no such layer.
    """

    def __init__(self, model: str, layer: int | None = None):
        try:
            from bert_score import BERTScorer
            from bert_score.utils import model2layers
        except ImportError as error:
            raise MissingBackendError("BERTScore needs bert-score: pip install 'pvchat[eval]'.") from error
        from transformers import AutoConfig

        self.backbone = Path(model).name if Path(model).is_dir() else model
        try:
            config = AutoConfig.from_pretrained(model)
            last = config.num_hidden_layers
            self.layer = layer if layer is not None else model2layers.get(self.backbone, last)
            if not 1 <= self.layer <= last:
                raise PVChatError(f"{self.backbone} has layers 1 to {last}, got --bertscore-layer {self.layer}.")
            self._scorer = BERTScorer(model_type=str(model), num_layers=self.layer, batch_size=BATCH)
        except (OSError, ValueError, AttributeError) as error:
            if isinstance(error, PVChatError):
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
            raise MissingBackendError(
                f"The encoder {model} of BERTScore cannot be loaded ({reason}); pass a folder with the model, or let "
                f"this computer reach the Hub once."
            ) from error
        tokenizer = self._scorer._tokenizer
        if tokenizer.model_max_length > NO_LIMIT:  # it would not cut, and long answers would not fit the encoder
            tokenizer.model_max_length = getattr(config, "max_position_embeddings", 514) - 2

    @property
    def hash(self) -> str:
        """bert-score's own name for the setting: model, layer, idf, versions."""
        return self._scorer.hash.replace(str(self._scorer.model_type), self.backbone)

    def score(self, answers: Sequence[str], golds: Sequence[str]) -> np.ndarray:
        """(N, 3) float64: precision, recall, F1 of every pair. A pair with an empty side scores 0; bert-score cannot
        encode it with current tokenizers."""
        scores = np.zeros((len(answers), 3))
        full = [i for i, pair in enumerate(zip(answers, golds, strict=True)) if all(text.strip() for text in pair)]
        if full:
            found = self._scorer.score([answers[i] for i in full], [golds[i] for i in full])
            scores[full] = np.stack([part.numpy() for part in found], axis=1)
        return scores

    def describe(self) -> dict[str, Any]:
        """`backbone`, `layer`, `hash`."""
        return {"backbone": self.backbone, "layer": self.layer, "hash": self.hash}
