"""Weights of the authors' code (PVChat, InternVideo2-Chat HD) -> weights of this package.

The authors' names are a flat model: `vision_encoder.*`, `vision_layernorm.*`, `qformer.bert.*`, `query_tokens`,
`extra_query_tokens`, `personal_query_tokens`, `project_up.*`, and a Mistral in PEFT at `lm.base_model.model.*`
(without LoRA: `lm.*`). Two PEFT layouts occur: 0.5 keeps the frozen weight at `<module>.weight`, 0.7 and later move it
to `<module>.base_layer.weight`; LoRA factors are `<module>.lora_{A,B}.default.weight` in both.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .configuration_pvchat import PVChatConfig, PVChatQFormerConfig, PVChatVisionConfig

LORA_ALPHA = 32.0
LORA_RANK = 16

_BERT = r"qformer\.bert\."
_LM = r"lm\.(?:base_model\.model\.)?"
_PARAM = r"(weight|bias)"

# Authors' name (whole, as a regular expression) -> ours.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"(query_tokens|extra_query_tokens)", r"model.\1.weight"),
    (r"personal_query_tokens", r"model.subject_tokens.weight"),
    (r"vision_encoder\.cls_token", r"model.vision_tower.embeddings.cls_token"),
    (r"vision_encoder\.pos_embed", r"model.vision_tower.embeddings.position_embedding"),
    (r"vision_encoder\.img_pos_embed", r"model.vision_tower.embeddings.image_position_embedding"),
    (rf"vision_encoder\.patch_embed\.proj\.{_PARAM}", r"model.vision_tower.embeddings.patch_embedding.\1"),
    (r"vision_encoder\.blocks\.(\d+)\.ls([12])", r"model.vision_tower.layers.\1.layer_scale\2"),
    (
        r"vision_encoder\.blocks\.(\d+)\.attn\.(qkv\.weight|proj\.weight|proj\.bias|[qk]_norm\.weight)",
        r"model.vision_tower.layers.\1.attention.\2",
    ),
    (r"vision_encoder\.blocks\.(\d+)\.(norm[12]\.weight)", r"model.vision_tower.layers.\1.\2"),
    (rf"vision_encoder\.blocks\.(\d+)\.mlp\.(fc[12])\.{_PARAM}", r"model.vision_tower.layers.\1.mlp.\2.\3"),
    (rf"vision_layernorm\.{_PARAM}", r"model.vision_layernorm.\1"),
    (rf"{_BERT}embeddings\.(word|position)_embeddings\.weight", r"model.qformer.embeddings.\1_embeddings.weight"),
    (rf"{_BERT}embeddings\.LayerNorm\.{_PARAM}", r"model.qformer.embeddings.layernorm.\1"),
    (
        rf"{_BERT}encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.(query|key|value)\.{_PARAM}",
        r"model.qformer.encoder.layer.\1.\2.attention.\3.\4",
    ),
    (
        rf"{_BERT}encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.router_alpha\.router\.{_PARAM}",
        r"model.qformer.encoder.layer.\1.\2.attention.head_router.router.\3",
    ),
    (
        rf"{_BERT}encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.router_alpha\.alpha_proj\.weight",
        r"model.qformer.encoder.layer.\1.\2.attention.head_router.alpha.weight",
    ),
    (
        rf"{_BERT}encoder\.layer\.(\d+)\.((?:attention|crossattention)\.output\.(?:dense|LayerNorm))\.{_PARAM}",
        r"model.qformer.encoder.layer.\1.\2.\3",
    ),
    (
        rf"{_BERT}encoder\.layer\.(\d+)\.((?:intermediate|intermediate_query)\.dense)\.{_PARAM}",
        r"model.qformer.encoder.layer.\1.\2.\3",
    ),
    (
        rf"{_BERT}encoder\.layer\.(\d+)\.((?:output|output_query)\.(?:dense|LayerNorm))\.{_PARAM}",
        r"model.qformer.encoder.layer.\1.\2.\3",
    ),
    (rf"project_up\.{_PARAM}", r"model.multi_modal_projector.\1"),
    (rf"{_LM}model\.embed_tokens\.weight", r"model.language_model.embed_tokens.weight"),
    (rf"{_LM}model\.norm\.weight", r"model.language_model.norm.weight"),
    (
        rf"{_LM}model\.layers\.(\d+)\.(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.(?:base_layer\.)?weight",
        r"model.language_model.layers.\1.\2.weight",
    ),
    (
        rf"{_LM}model\.layers\.(\d+)\.(input_layernorm|post_attention_layernorm)\.weight",
        r"model.language_model.layers.\1.\2.weight",
    ),
    (r"lm\.base_model\.model\.lm_head\.(?:base_layer\.)?weight", r"lm_head.weight"),
    (r"lm\.lm_head\.weight", r"lm_head.weight"),
)

# Authors' name -> why it has no place here. `lm.lm_head.weight` joins them when PEFT's own lm_head exists.
DEAD: tuple[tuple[str, str], ...] = (
    (r"project_down\.(?:weight|bias)", "projects the language model back to the Q-Former; no forward calls it"),
    (rf"{_BERT}embeddings\.position_ids", "a constant 0, 1, 2, ... kept as a buffer"),
    (r"qformer\.cls\..+", "BERT's masked-word head; no forward calls it"),
    (rf"{_BERT}pooler\..+", "BERT's pooler; no forward calls it"),
    (rf"{_LM}model\.(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "computed from rope_theta"),
)
DEAD_ALIAS = (
    r"lm\.lm_head\.weight",
    "a copy that the authors' script attaches outside of PEFT; PEFT's lm_head is the one that runs",
)

_RENAMES = tuple((re.compile(pattern), ours) for pattern, ours in RENAMES)
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.default\.weight")


def convert_name(reference_name: str) -> str | None:
    """Our name of one of the authors' parameters, or `None` if it has none. LoRA factors have none either."""
    for pattern, ours in _RENAMES:
        match = pattern.fullmatch(reference_name)
        if match:
            return match.expand(ours)
    return None


def dead_names(reference_names: Iterable[str]) -> dict[str, str]:
    """The parameters among `reference_names` that are dropped, each with the reason."""
    names = list(reference_names)
    table = DEAD
    if any(re.match(r"lm\.base_model\.model\.lm_head\.", name) for name in names):
        table = (*DEAD, DEAD_ALIAS)
    return {name: reason for name in names for pattern, reason in table if re.fullmatch(pattern, name)}


def to_reference_names(reference_names: Iterable[str]) -> dict[str, str]:
    """Our names of all living parameters among `reference_names` -> the authors' (without LoRA factors and dead ones).

    Raises:
        ValueError: a name is unknown, or two of them are the same parameter.
    """
    names = list(reference_names)
    dead = dead_names(names)
    ours: dict[str, str] = {}
    unknown = []
    for name in names:
        if name in dead or _LORA.fullmatch(name):
            continue
        converted = convert_name(name)
        if converted is None:
            unknown.append(name)
        elif converted in ours:
            raise ValueError(f"{name} and {ours[converted]} are both {converted}: the checkpoint mixes two layouts.")
        else:
            ours[converted] = name
    if unknown:
        raise ValueError(f"{len(unknown)} unknown parameters, no place for: {', '.join(sorted(unknown))}.")
    return ours


def split_lora(
    reference_state_dict: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Separates the base model from the LoRA that the authors' checkpoint carries.

    Args:
        reference_state_dict: the authors' names -> tensors.

    Returns:
        Our names -> base weights without LoRA, and the LoRA factors under the names of a PEFT adapter file for our
        model (`base_model.model.<module>.lora_A.weight`, (r, in), and `.lora_B.weight`, (out, r)); empty if none.

    Raises:
        ValueError: unknown parameters, two layouts mixed, a LoRA factor without its partner or its base weight.
    """
    names = to_reference_names(reference_state_dict)
    base = {ours: _reshape(ours, reference_state_dict[theirs]) for ours, theirs in names.items()}
    lora: dict[str, torch.Tensor] = {}
    for name, tensor in reference_state_dict.items():
        match = _LORA.fullmatch(name)
        if match is None:
            continue
        partner = f"{match['module']}.lora_{'B' if match['factor'] == 'A' else 'A'}.default.weight"
        if partner not in reference_state_dict:
            raise ValueError(f"{name} has no {partner}.")
        weight = convert_name(f"{match['module']}.weight")
        if weight not in base:
            raise ValueError(f"{name} belongs to no weight of the checkpoint.")
        lora[f"base_model.model.{weight.removesuffix('.weight')}.lora_{match['factor']}.weight"] = tensor
    return base, lora


def convert_state_dict(
    reference_state_dict: Mapping[str, torch.Tensor],
    lora_alpha: float = LORA_ALPHA,
    lora_rank: int = LORA_RANK,
) -> dict[str, torch.Tensor]:
    """Names and shapes of the authors' checkpoint -> those of `PVChatForConditionalGeneration`, LoRA merged.

    Args:
        reference_state_dict: the authors' names -> tensors, of any size, of either PEFT layout, or without LoRA.
        lora_alpha, lora_rank: LoRA is scaled by their ratio; the authors' checkpoints have 32 and 16.

    Returns:
        Our names -> tensors. Nothing is left over: every tensor is renamed, merged or listed by `dead_names`. Merged
        weights are computed in float32 and cast back; all others are the same tensors. A checkpoint without subject
        tokens or routers (InternVideo2-Chat HD) gives none.

    Raises:
        ValueError: unknown parameters (all of them named), two layouts mixed, or an incomplete LoRA.
    """
    weights, lora = split_lora(reference_state_dict)
    scale = lora_alpha / lora_rank
    for name in [name for name in lora if name.endswith(".lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        weight = f"{module.removeprefix('base_model.model.')}.weight"
        down, up = lora[name].float(), lora[f"{module}.lora_B.weight"].float()
        base = weights[weight]
        if (up.shape[0], down.shape[1]) != tuple(base.shape) or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"The LoRA of {weight} does not fit: {tuple(up.shape)} times {tuple(down.shape)} for a weight of "
                f"{tuple(base.shape)}."
            )
        weights[weight] = (base.float() + scale * (up @ down)).to(base.dtype)
    return weights


def _reshape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Query tables lose their leading 1."""
    is_table = name in ("model.query_tokens.weight", "model.extra_query_tokens.weight", "model.subject_tokens.weight")
    return tensor[0] if is_table else tensor


# -- configurations ---------------------------------------------------------------------------------------------------


def config_from_reference(
    config_json: Mapping[str, Any], reference_state_dict: Mapping[str, torch.Tensor]
) -> PVChatConfig:
    """Configuration of a checkpoint of the authors, with their routing (`alpha_scale=1`, `routing_init="reference"`).

    Args:
        config_json: their `config.json`. It leaves most sizes to the code; `vit`, `qformer` and `llm` (as the golden
            files have them) may state them, else they are those of the published models.
        reference_state_dict: their names -> tensors (meta tensors will do). Shapes decide wherever they can.

    Returns:
        A config into which `convert_state_dict(reference_state_dict)` loads. Its vocabulary is the checkpoint's: the
        placeholder `<video>` and, unless the checkpoint was trained on a subject, `<sks>` are the rows to be added.

    Raises:
        ValueError: parameters are missing or contradict each other.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in reference_state_dict.items()}
    settings = config_json.get("model_config", config_json)
    bridge = settings.get("bridge", {})
    dropouts = {
        ours: bridge[theirs]
        for ours, theirs in (
            ("hidden_dropout_prob", "qformer_hidden_dropout_prob"),
            ("attention_probs_dropout_prob", "qformer_attention_probs_dropout_prob"),
            ("drop_path_rate", "qformer_drop_path_rate"),
        )
        if theirs in bridge
    }
    text = _text_settings(shapes, config_json.get("llm", {}))
    rows, words = text["vocab_size"], config_json.get("llm", {}).get("vocab_size", 32768)
    trained_on_a_subject = rows > words
    subjects = shapes.get("personal_query_tokens", (1, bridge.get("num_personal_token", 16)))[1]
    return PVChatConfig(
        vision_config=vision_config_from_reference(shapes, config_json.get("vit", {})),
        qformer_config=qformer_config_from_reference(shapes, {**config_json.get("qformer", {}), **dropouts}),
        text_config=text,
        num_query_tokens=_shape(shapes, "query_tokens")[1],
        num_extra_query_tokens=shapes.get("extra_query_tokens", (1, 0))[1],
        num_subject_tokens=subjects,
        video_token_id=rows,
        subject_token_id=words if trained_on_a_subject else rows + 1,
    )


def vision_config_from_reference(
    shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]
) -> PVChatVisionConfig:
    """Encoder configuration from the authors' parameter shapes.

    Args:
        shapes: the authors' names -> shapes.
        settings: what shapes cannot tell: `num_heads`, `rms_eps`, `layernorm_eps` (the published ones if absent).
    """
    channels, colours, tubelet, patch, _ = _shape(shapes, "vision_encoder.patch_embed.proj.weight")
    places = _shape(shapes, "vision_encoder.img_pos_embed")[1] - 1
    side, slices = math.isqrt(places), (_shape(shapes, "vision_encoder.pos_embed")[1] - 1) // places
    default = PVChatVisionConfig()
    return PVChatVisionConfig(
        hidden_size=channels,
        intermediate_size=_shape(shapes, "vision_encoder.blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=_count(shapes, r"vision_encoder\.blocks\.(\d+)\..+"),
        num_attention_heads=settings.get("num_heads", default.num_attention_heads),
        num_channels=colours,
        image_size=side * patch,
        patch_size=patch,
        num_frames=slices * tubelet,
        tubelet_size=tubelet,
        rms_norm_eps=settings.get("rms_eps", default.rms_norm_eps),
        layer_norm_eps=settings.get("layernorm_eps", default.layer_norm_eps),
    )


def qformer_config_from_reference(
    shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]
) -> PVChatQFormerConfig:
    """Q-Former configuration from the authors' parameter shapes; routed if there are routers among them.

    Args:
        shapes: the authors' names -> shapes.
        settings: what shapes cannot tell: `num_attention_heads`, `top_k`, dropouts (the published ones if absent).

    Raises:
        ValueError: cross-attention is not in every n-th layer, or routers are not in all layers from one on.
    """
    layer = r"qformer\.bert\.encoder\.layer\.(\d+)\."
    crossing = _indices(shapes, layer + r"crossattention\..+")
    routed = _indices(shapes, layer + r"attention\.self\.router_alpha\..+")
    layers = _count(shapes, layer + ".+")
    frequency = crossing[1] - crossing[0] if len(crossing) > 1 else layers
    default = PVChatQFormerConfig()
    heads = settings.get("num_attention_heads", default.num_attention_heads)
    attention = "qformer.bert.encoder.layer.{}.attention.self.{}.weight"
    routing: dict[str, Any] = {"routing": "none"}
    if routed:
        num_routed = _shape(shapes, attention.format(routed[0], "router_alpha.router"))[0]
        routing = {
            "routing": "remoh",
            "routing_start_layer": routed[0],
            "num_shared_heads": heads - num_routed,
            "num_routed_heads": num_routed,
            "num_active_heads": settings.get("top_k", min(default.num_active_heads, num_routed)),
        }
    words = shapes.get("qformer.bert.embeddings.word_embeddings.weight")
    config = PVChatQFormerConfig(
        hidden_size=_shape(shapes, attention.format(0, "query"))[0],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=_shape(shapes, "qformer.bert.encoder.layer.0.intermediate_query.dense.weight")[0],
        encoder_hidden_size=_shape(shapes, "qformer.bert.encoder.layer.0.crossattention.self.key.weight")[1],
        cross_attention_frequency=frequency,
        vocab_size=words[0] if words else default.vocab_size,
        max_position_embeddings=shapes.get(
            "qformer.bert.embeddings.position_embeddings.weight", (default.max_position_embeddings,)
        )[0],
        layer_norm_eps=settings.get("layer_norm_eps", default.layer_norm_eps),
        has_text_branch=words is not None,
        alpha_scale=1.0,
        routing_init="reference",
        **routing,
        **{
            name: settings[name]
            for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
            if name in settings
        },
    )
    if crossing != [i for i in range(layers) if config.has_cross_attention(i)]:
        raise ValueError(f"Cross-attention must be in every n-th layer from 0 on, the checkpoint has {crossing}.")
    if routed != [i for i in range(layers) if config.is_routed(i)]:
        raise ValueError(f"Routers must be in all layers from one on, the checkpoint has {routed}.")
    return config


def _text_settings(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Mistral's settings: shapes first, then `settings`, then those of Mistral-7B-Instruct-v0.3."""
    whole = re.compile(r"lm\.(?:base_model\.model\.)?(.+?)(?:\.base_layer)?\.weight")
    named = {match[1]: shape for name, shape in shapes.items() if (match := whole.fullmatch(name))}
    heads = settings.get("num_attention_heads", 32)
    vocabulary, hidden = _shape(named, "model.embed_tokens")
    head_dim = settings.get("head_dim", _shape(named, "model.layers.0.self_attn.q_proj")[0] // heads)
    return {
        "model_type": "mistral",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": _shape(named, "model.layers.0.mlp.gate_proj")[0],
        "num_hidden_layers": _count(named, r"model\.layers\.(\d+)\..+"),
        "num_attention_heads": heads,
        "num_key_value_heads": _shape(named, "model.layers.0.self_attn.k_proj")[0] // head_dim,
        "head_dim": head_dim,
        "max_position_embeddings": settings.get("max_position_embeddings", 32768),
        "rms_norm_eps": settings.get("rms_norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": settings.get("rope_theta", 1e6)},
        "sliding_window": settings.get("sliding_window"),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"The checkpoint has no {name}: it is not one of PVChat or InternVideo2-Chat HD.")
    return shapes[name]


def _indices(names: Iterable[str], pattern: str) -> list[int]:
    """The numbers that the group of `pattern` takes among `names`, sorted."""
    return sorted({int(match[1]) for match in (re.fullmatch(pattern, name) for name in names) if match})


def _count(names: Iterable[str], pattern: str) -> int:
    """How many layers there are; they must be numbered 0, 1, 2, ..."""
    found = _indices(names, pattern)
    if found != list(range(len(found))) or not found:
        raise ValueError(f"Layers matching {pattern} are not numbered from 0 on without gaps: {found}.")
    return len(found)


__all__ = ["config_from_reference", "convert_state_dict", "dead_names", "split_lora", "to_reference_names"]
