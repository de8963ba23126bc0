"""Models of two sizes and data of the paper's shape, to measure what things cost.

`full` is the published system. `tiny` runs on a processor, with proportions chosen so that the parts of the
reference's step cost about what they do at full size (vision a half; as many tokens to a video and to a question).
Weights are random: cost does not depend on them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pvchat.dataset_builder.cartoon import Scene, cast, render_video
from pvchat.dataset_builder.recipe import get_recipe
from pvchat.modeling_pvchat.configuration_pvchat import PVChatConfig
from pvchat.modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.modeling_pvchat.processing_pvchat import PVChatProcessor
from pvchat.modeling_pvchat.video_processing_pvchat import PVChatVideoProcessor
from pvchat.trainers.adapter import AdapterSettings, build_subject_model

NAME = "<Nz>"
QUESTION_TOKENS = 52  # of a question with its answer: 411 of a sample, less 359 that depend on the video only
ANSWER_TOKENS = 22  # with </s>
STILL_CATEGORIES = ("existence", "appearance")  # what stage 1 asks
EPOCHS = {1: 1, 2: 7}  # of the two stages, as in the paper
_TOKENS = ("<unk>", "<s>", "</s>", "<video>", "<sks>", "[INST]", "[/INST]", "Video", "</")  # id = place

TINY = {
    "vision_config": {
        "hidden_size": 208,
        "intermediate_size": 910,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "tubelet_size": 2,
    },
    "qformer_config": {
        "hidden_size": 36,
        "intermediate_size": 144,
        "num_hidden_layers": 4,
        "has_text_branch": False,
        "routing_start_layer": 2,
    },
    "text_config": {  # few and narrow heads, or attention over 18 questions in a row would cost too much
        "model_type": "mistral",
        "hidden_size": 256,
        "intermediate_size": 896,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": None,
    },
}


def config_of(size: str) -> PVChatConfig:
    """`"tiny"` or `"full"`; the ids of `<video>` and `<sks>` are those of `make_processor`'s tokenizer."""
    ids = {"video_token_id": _TOKENS.index("<video>"), "subject_token_id": _TOKENS.index("<sks>")}
    if size == "full":
        config = PVChatConfig(**ids)
        config.qformer_config.routing = "none"  # as in a base; `build_subject_model` inserts the routers
        return config
    config = PVChatConfig(**TINY, **ids)
    config.qformer_config.routing = "none"
    config.text_config.vocab_size = 256 + len(_TOKENS)
    return config


def make_processor(config: PVChatConfig) -> PVChatProcessor:
    """A tokenizer of single bytes, so that a text has as many tokens as is wanted, and the model's video processor."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    vision = config.vision_config
    video_processor = PVChatVideoProcessor(
        size={"height": vision.image_size, "width": vision.image_size},
        num_frames=vision.num_frames,
        tile_grid=config.tile_grid,
    )
    return PVChatProcessor(video_processor, fast, num_tiles=config.num_tiles, tokens_per_tile=config.tokens_per_tile)


def make_model(size: str, profile: str, num_vision_layers: int = 0, seed: int = 0, dtype=torch.float32):
    """A model with random weights that can learn a subject. `"reference"` trains what the authors' script trains.

    That is the profile `paper` without encoder blocks: subject tokens, Q-Former, routers and LoRA (rank 16). The LoRA
    of the tiny model have rank 2, or they would be a tenth of it.
    """
    torch.manual_seed(seed)
    base = PVChatForConditionalGeneration._from_config(config_of(size), dtype=dtype)
    shape = AdapterSettings(
        profile="light" if profile == "light" else "paper",
        num_vision_layers=0 if profile == "reference" else num_vision_layers,
        rank=None if size == "full" else 2,
        dropout=0.1 if size == "full" else 0.0,
    )
    return build_subject_model(base, shape, seed)


# -- data -------------------------------------------------------------------------------------------------------------


def make_rows(folder: Path, described: int = 1, others: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Training rows of drawn clips, with as many questions as the paper's recipe asks of each kind of clip.

    The recipe describes 16 clips of 81; one of five is as near as few clips come (18.0 questions a clip, 18.0 in the
    recipe).
    """
    rows = []
    kinds = [row.questions for row in get_recipe("paper").rows]
    asked = [max(kinds, key=lambda q: q.total)] * described + [min(kinds, key=lambda q: q.total)] * others
    for index, (member, questions) in enumerate(zip(cast(len(asked), seed), asked, strict=True)):
        path = folder / f"{index}.mp4"
        render_video(path, member.identity, Scene.random(np.random.default_rng([seed, index])))
        counts = {name: getattr(questions, name) for name in ("existence", "appearance", "action", "location")}
        rows.append(
            {
                "video_id": str(index),
                "subject": NAME,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "path": str(path),
                "qa": [question_of(name, number) for name, count in counts.items() for number in range(count)],
            }
        )
    return rows


def question_of(category: str, number: int) -> dict[str, Any]:
    """A question and answer of `QUESTION_TOKENS` tokens of a byte each: `" [INST][<sks>]...[/INST]...</s>"`."""
    asked = f"{number} {category} of "
    words = QUESTION_TOKENS - ANSWER_TOKENS - 6  # the space, [INST], the bracketed token (3), [/INST]
    return {
        "category": category,
        "question": asked.ljust(words, "?")[:words],
        "answer": "Yes, he is.".ljust(ANSWER_TOKENS - 1, "."),
        "subject_present": True,
    }


def rows_of_stage(rows: list[dict[str, Any]], stage: int) -> list[dict[str, Any]]:
    """The rows with the questions that a stage asks."""
    if stage == 2:
        return rows
    return [row | {"qa": [q for q in row["qa"] if q["category"] in STILL_CATEGORIES]} for row in rows]
