"""A BERT of a few thousand random parameters, saved as a folder: stands for the encoder of BERTScore."""

from __future__ import annotations

import string
from pathlib import Path

import torch


def tiny_bert(folder: Path, layers: int = 2, positions: int = 512, limit: int | None = 512) -> Path:
    """Letters are its tokens. limit: what its tokenizer says is the longest text; None: nothing."""
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = string.ascii_lowercase
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *"<>.,'", *(f"##{c}" for c in letters)]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    options = {} if limit is None else {"model_max_length": limit}
    BertTokenizer(str(folder / "vocab.txt"), **options).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
    )
    BertModel(config).save_pretrained(folder)
    return folder
