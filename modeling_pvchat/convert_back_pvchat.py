"""Weights of this package -> the names of the authors' code, without LoRA (`use_lora: false`, no PEFT prefix).

The way back of `convert_pvchat`: `convert_state_dict(to_authors_state_dict(weights, config))` are the weights again,
except for the vocabulary row of `<video>`, which the authors' model does not have.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from .configuration_pvchat import PVChatConfig

QUERY_TABLES = ("query_tokens", "extra_query_tokens", "personal_query_tokens")
VOCABULARY_NAMES = ("lm.model.embed_tokens.weight", "lm.lm_head.weight")
_ATTENTION = r"^model\.qformer\.encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\."

# Our name (its beginning, as a regular expression) -> the authors'. The first that matches is taken.
PREFIXES: tuple[tuple[str, str], ...] = (
    (r"^model\.(query_tokens|extra_query_tokens)\.weight$", r"\1"),
    (r"^model\.subject_tokens\.weight$", "personal_query_tokens"),
    (r"^model\.vision_tower\.embeddings\.cls_token$", "vision_encoder.cls_token"),
    (r"^model\.vision_tower\.embeddings\.position_embedding$", "vision_encoder.pos_embed"),
    (r"^model\.vision_tower\.embeddings\.image_position_embedding$", "vision_encoder.img_pos_embed"),
    (r"^model\.vision_tower\.embeddings\.patch_embedding\.", "vision_encoder.patch_embed.proj."),
    (r"^model\.vision_tower\.layers\.(\d+)\.attention\.", r"vision_encoder.blocks.\1.attn."),
    (r"^model\.vision_tower\.layers\.(\d+)\.layer_scale", r"vision_encoder.blocks.\1.ls"),
    (r"^model\.vision_tower\.layers\.", "vision_encoder.blocks."),
    (r"^model\.vision_layernorm\.", "vision_layernorm."),
    (r"^model\.qformer\.embeddings\.layernorm\.", "qformer.bert.embeddings.LayerNorm."),
    (_ATTENTION + r"head_router\.alpha\.", r"qformer.bert.encoder.layer.\1.\2.self.router_alpha.alpha_proj."),
    (_ATTENTION + r"head_router\.", r"qformer.bert.encoder.layer.\1.\2.self.router_alpha."),
    (_ATTENTION, r"qformer.bert.encoder.layer.\1.\2.self."),
    (r"^model\.qformer\.", "qformer.bert."),
    (r"^model\.multi_modal_projector\.", "project_up."),
    (r"^model\.language_model\.", "lm.model."),
    (r"^lm_head\.", "lm.lm_head."),
)


def authors_name(name: str) -> str:
    """The authors' name of one of our parameters.

    Raises:
        ValueError: it is none of `PVChatForConditionalGeneration`.
    """
    for pattern, theirs in PREFIXES:
        converted, count = re.subn(pattern, theirs, name)
        if count:
            return converted
    raise ValueError(f"{name} is no parameter of PVChat.")


def authors_vocabulary(config: PVChatConfig) -> int:
    """Rows of their embedding: all in front of `<video>`, or in front of both new words where `<sks>` comes last.

    Their base has neither word; a checkpoint that they trained on a subject has `<sks>` and fills the places of videos
    with id 0.
    """
    return min(config.video_token_id, config.text_config.vocab_size)


def to_authors_state_dict(state_dict: Mapping[str, torch.Tensor], config: PVChatConfig) -> dict[str, torch.Tensor]:
    """Our names and shapes -> the authors', of all tensors or some of them (meta tensors will do).

    Raises:
        ValueError: a parameter is unknown, or `<video>` stands in the middle of the vocabulary.
    """
    rows, words = authors_vocabulary(config), config.text_config.vocab_size
    if words - rows > 2 or config.subject_token_id not in (rows - 1, rows + 1):
        raise ValueError(
            f"The authors' words end before <video> (id {config.video_token_id}) and <sks> (id "
            f"{config.subject_token_id}) of {words}: only <video> and <sks> may stand at the end."
        )
    converted = {}
    for name, tensor in state_dict.items():
        theirs = authors_name(name)
        if theirs in QUERY_TABLES:
            tensor = tensor[None]
        elif theirs in VOCABULARY_NAMES:
            tensor = tensor[:rows]
        converted[theirs] = tensor
    return converted


def unused_authors_tensors(config: PVChatConfig, dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    """What their model holds and never uses: needed to load strictly. Zeros, and the positions 0, 1, 2, ..."""
    up = (config.text_config.hidden_size, config.qformer_config.hidden_size)
    tensors = {
        "project_down.weight": torch.zeros(up[::-1], dtype=dtype, device=device),
        "project_down.bias": torch.zeros(up[1], dtype=dtype, device=device),
    }
    if config.qformer_config.has_text_branch:
        positions = torch.arange(config.qformer_config.max_position_embeddings, device=device)
        tensors["qformer.bert.embeddings.position_ids"] = positions[None]
    return tensors


def authors_config(config: PVChatConfig) -> dict[str, Any]:
    """What `config_from_reference` cannot read off the shapes of the weights, where it looks for it."""
    vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
    settings = {
        "vit": {
            "num_heads": vision.num_attention_heads,
            "rms_eps": vision.rms_norm_eps,
            "layernorm_eps": vision.layer_norm_eps,
        },
        "qformer": {
            "num_attention_heads": qformer.num_attention_heads,
            "layer_norm_eps": qformer.layer_norm_eps,
            "top_k": qformer.num_active_heads,
        },
        "llm": {
            "num_attention_heads": text.num_attention_heads,
            "head_dim": text.head_dim,
            "vocab_size": min(config.video_token_id, config.subject_token_id),
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_parameters["rope_theta"],
            "sliding_window": text.sliding_window,
        },
    }
    bridge = {
        "num_query_token": config.num_query_tokens,
        "extra_num_query_token": config.num_extra_query_tokens,
        "num_personal_token": config.num_subject_tokens,
        "qformer_hidden_dropout_prob": qformer.hidden_dropout_prob,
        "qformer_attention_probs_dropout_prob": qformer.attention_probs_dropout_prob,
        "qformer_drop_path_rate": qformer.drop_path_rate,
    }
    return settings | {"model_config": {"bridge": bridge, "llm": {"use_lora": False}}}


__all__ = [
    "authors_config",
    "authors_name",
    "authors_vocabulary",
    "to_authors_state_dict",
    "unused_authors_tensors",
]
