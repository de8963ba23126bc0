"""A model of ours written the way the authors write theirs: their names, their shapes, their golden files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

# Ours -> theirs, one substitution after the other. Independent of the tables in convert_pvchat.
SUBSTITUTIONS = (
    (r"^model\.subject_tokens\.weight$", "personal_query_tokens"),
    (r"^model\.((?:extra_)?query_tokens)\.weight$", r"\1"),
    (r"^model\.multi_modal_projector\.", "project_up."),
    (r"^model\.vision_layernorm\.", "vision_layernorm."),
    (r"^model\.vision_tower\.", "vision_encoder."),
    (r"^(vision_encoder\.)embeddings\.image_position_embedding$", r"\1img_pos_embed"),
    (r"^(vision_encoder\.)embeddings\.position_embedding$", r"\1pos_embed"),
    (r"^(vision_encoder\.)embeddings\.patch_embedding\.", r"\1patch_embed.proj."),
    (r"^(vision_encoder\.)embeddings\.", r"\1"),
    (r"^(vision_encoder\.)layers\.(\d+)\.attention\.", r"\1blocks.\2.attn."),
    (r"^(vision_encoder\.)layers\.(\d+)\.layer_scale", r"\1blocks.\2.ls"),
    (r"^(vision_encoder\.)layers\.", r"\1blocks."),
    (r"^model\.qformer\.", "qformer.bert."),
    (r"^(qformer\.bert\.embeddings)\.layernorm\.", r"\1.LayerNorm."),
    (r"attention\.attention\.head_router\.alpha\.", "attention.self.router_alpha.alpha_proj."),
    (r"attention\.attention\.head_router\.", "attention.self.router_alpha."),
    (r"attention\.attention\.", "attention.self."),
    (r"^model\.language_model\.", "lm.base_model.model.model."),
    (r"^lm_head\.", "lm.base_model.model.lm_head."),
)
TABLES = ("query_tokens", "extra_query_tokens", "personal_query_tokens")


def authors_name(ours: str) -> str:
    for pattern, theirs in SUBSTITUTIONS:
        ours = re.sub(pattern, theirs, ours)
    return ours


def authors_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names and shapes of the authors (PEFT 0.5 layout, no LoRA factors)."""
    named = {authors_name(name): tensor.detach().clone() for name, tensor in state_dict.items()}
    return {name: tensor[None] if name in TABLES else tensor for name, tensor in named.items()}


def add_lora(
    state_dict: Mapping[str, torch.Tensor], rank: int = 4, pattern: str = r"_proj|lm_head"
) -> dict[str, torch.Tensor]:
    """Random LoRA factors beside every matching weight of the language model."""
    result = dict(state_dict)
    for name, tensor in state_dict.items():
        if name.startswith("lm.") and re.search(pattern, name):
            module = name.removesuffix(".weight")
            result[f"{module}.lora_A.default.weight"] = 0.1 * torch.randn(rank, tensor.shape[1])
            result[f"{module}.lora_B.default.weight"] = 0.1 * torch.randn(tensor.shape[0], rank)
    return result


def modern_peft(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in the layout of PEFT 0.7 and later: weights with LoRA move to `base_layer`."""
    adapted = {f"{name.split('.lora_')[0]}.weight" for name in state_dict if ".lora_" in name}
    return {
        name.replace(".weight", ".base_layer.weight") if name in adapted else name: tensor
        for name, tensor in state_dict.items()
    }


def write_golden(
    path: Path,
    config: dict,
    weights: Mapping[str, torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
) -> Path:
    """One golden file, its description in the header as in the authors' ones."""
    groups = {"weights": weights, "input": inputs, "output": outputs}
    tensors = {
        f"{group}.{name}": tensor.detach().clone().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    save_file(tensors, path, metadata={"meta": json.dumps({"name": path.stem, "config": config})})
    return path
