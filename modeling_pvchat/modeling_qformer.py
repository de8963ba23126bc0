"""Q-Former with a mixture of attention heads.

Shape letters: B clips (tiles), Q queries, L text tokens, T = Q + L, S encoder tokens, D channels, N heads, d head
size, R routed heads. Sources: BLIP-2's Q-Former; ReMoH as in PVChat (ICCV 2025), section 3; MoH (Jin et al., 2024).

    o_i = head_i(x) * s_i(x)          s_i = a1             for a shared head
                                      s_i = a2 * g_i(x)    for a routed head
    [a1, a2] = alpha_scale * softmax(W_h x)
    ReMoH: g = ReLU(W_r x + b)        MoH: g = k * renormalised top-k of softmax(W_r x + b)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_pvchat import PVChatQFormerConfig
from .modeling_internvideo2 import eager_attention_forward, want_gradient

GATE_CLAMP = (-1.0, 10.0)
ALPHA_CLAMP = (-1.0, 1.0)


def relu_gates(router_logits: torch.Tensor) -> torch.Tensor:
    """ReMoH gates: (..., R) router logits -> (..., R) gates in [0, 10]. The clamp is the authors'."""
    return F.relu(router_logits.clamp(*GATE_CLAMP))


def top_k_gates(router_logits: torch.Tensor, k: int) -> torch.Tensor:
    """MoH gates: softmax over the routed heads, all but the k largest set to 0, the rest scaled to sum to k."""
    weights = router_logits.softmax(dim=-1)
    top, index = weights.topk(k, dim=-1)
    gates = torch.zeros_like(weights).scatter(-1, index, top)
    return k * gates / gates.sum(dim=-1, keepdim=True)


@dataclass
class PVChatQFormerOutput(ModelOutput):
    """Output of the Q-Former.

    Args:
        last_hidden_state: (B, T, D).
        router_logits: one (B, T, R) tensor per routed attention (layer by layer, self before cross): `W_r x + b`.
        alpha_logits: likewise (B, T, 2): `W_h x` before clamp and softmax.
        hidden_states: embedding output and every layer's output, if asked for.
        attentions, cross_attentions: (B, N, T, T) and (B, N, Q, S) weights of eager attention, if asked for.
    """

    last_hidden_state: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
    alpha_logits: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class PVChatRouterLinear(nn.Linear):
    """A Linear with a start value of its own, see `init_router_weights`.

    It is a class because transformers initialises code from outside its own package module by module, and passes over
    those without parameters: a start value set by the parent would never be used.
    """

    def __init__(self, config: PVChatQFormerConfig, out_features: int, bias: bool):
        super().__init__(config.hidden_size, out_features, bias=bias)
        self.config = config


class PVChatHeadRouter(nn.Module):
    """Scores the routed heads and balances them against the shared ones, token by token."""

    def __init__(self, config: PVChatQFormerConfig):
        super().__init__()
        self.config = config
        self.router = PVChatRouterLinear(config, config.num_routed_heads, bias=True)
        self.alpha = PVChatRouterLinear(config, 2, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, D) -> head scales (B, T, N), router logits (B, T, R), alpha logits (B, T, 2)"""
        config = self.config
        router_logits = self.router(hidden_states)
        alpha_logits = self.alpha(hidden_states)
        shared, routed = head_alphas(alpha_logits, config.alpha_scale).split(1, dim=-1)
        if config.routing == "remoh":
            gates = relu_gates(router_logits)
        else:
            gates = top_k_gates(router_logits, config.num_active_heads)
        scales = torch.cat([shared.expand(*shared.shape[:-1], config.num_shared_heads), routed * gates], dim=-1)
        return scales, router_logits, alpha_logits


def head_alphas(alpha_logits: torch.Tensor, alpha_scale: float) -> torch.Tensor:
    """Weights of the shared and the routed group, (..., 2) logits -> (..., 2)."""
    return alpha_scale * alpha_logits.clamp(*ALPHA_CLAMP).softmax(dim=-1)


class PVChatQFormerMultiHeadAttention(nn.Module):
    """Self- or cross-attention whose heads may be scaled by a router."""

    def __init__(self, config: PVChatQFormerConfig, layer: int, is_cross_attention: bool):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        key_size = config.encoder_hidden_size if is_cross_attention else config.hidden_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_size, config.hidden_size)
        self.value = nn.Linear(key_size, config.hidden_size)
        self.head_router = PVChatHeadRouter(config) if config.is_routed(layer) else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """(B, T, D) and, for cross-attention, (B, S, D_enc) -> (B, T, D), weights, router logits, alpha logits"""
        batch, tokens, dim = hidden_states.shape
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            x.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)
            for x in (self.query(hidden_states), self.key(source), self.value(source))
        )  # (B, N, T or S, d)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )  # (B, T, N, d)
        router_logits = alpha_logits = None
        if self.head_router is not None:
            scales, router_logits, alpha_logits = self.head_router(hidden_states)
            output = output * scales.to(output.dtype)[..., None]
        return output.reshape(batch, tokens, dim), weights, router_logits, alpha_logits


class PVChatQFormerResidual(nn.Module):
    """Linear, dropout, stochastic depth, residual, LayerNorm (post-norm as in BERT)."""

    def __init__(self, config: PVChatQFormerConfig, input_size: int, layer: int):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path_rate = config.drop_path_rate * layer / max(config.num_hidden_layers - 1, 1)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.dense(hidden_states))
        if self.training and self.drop_path_rate > 0.0:
            keep = 1.0 - self.drop_path_rate
            mask = torch.empty(hidden_states.shape[0], 1, 1, device=hidden_states.device).bernoulli_(keep) / keep
            hidden_states = hidden_states * mask.to(hidden_states.dtype)
        return self.LayerNorm(hidden_states + residual)


class PVChatQFormerAttention(nn.Module):
    def __init__(self, config: PVChatQFormerConfig, layer: int, is_cross_attention: bool = False):
        super().__init__()
        self.attention = PVChatQFormerMultiHeadAttention(config, layer, is_cross_attention)
        self.output = PVChatQFormerResidual(config, config.hidden_size, layer)

    def forward(self, hidden_states: torch.Tensor, **kwargs):
        output, _, router_logits, alpha_logits = self.attention(hidden_states, **kwargs)
        return self.output(output, hidden_states), router_logits, alpha_logits


class PVChatQFormerIntermediate(nn.Module):
    def __init__(self, config: PVChatQFormerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN["gelu"]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states))


class PVChatQFormerLayer(GradientCheckpointingLayer):
    """Self-attention over queries (and text), cross-attention of the queries to the video, feed-forward."""

    def __init__(self, config: PVChatQFormerConfig, layer: int):
        super().__init__()
        self.attention = PVChatQFormerAttention(config, layer)
        self.crossattention = (
            PVChatQFormerAttention(config, layer, is_cross_attention=True)
            if config.has_cross_attention(layer)
            else None
        )
        self.intermediate_query = PVChatQFormerIntermediate(config)
        self.output_query = PVChatQFormerResidual(config, config.intermediate_size, layer)
        if config.has_text_branch:
            self.intermediate = PVChatQFormerIntermediate(config)
            self.output = PVChatQFormerResidual(config, config.intermediate_size, layer)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_length: int,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, ...]:
        """(B, T, D), (B, S, D_enc) -> (B, T, D), router logits of this layer's routed attentions, their alpha logits

        One flat tuple: in a nested one reentrant checkpointing would pass the routers' gradients over.
        """
        hidden_states, *routing = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        routings = [routing]
        queries, text = hidden_states[:, :query_length], hidden_states[:, query_length:]
        if self.crossattention is not None:
            queries, *routing = self.crossattention(
                queries, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask, **kwargs
            )
            routings.append(routing)
        hidden_states = self.output_query(self.intermediate_query(queries), queries)
        if text.shape[1]:
            hidden_states = torch.cat([hidden_states, self.output(self.intermediate(text), text)], dim=1)
        routings = [routing for routing in routings if routing[0] is not None]
        return hidden_states, *(r for r, _ in routings), *(a for _, a in routings)


class PVChatQFormerEmbeddings(nn.Module):
    """LayerNorm and dropout on the queries, followed by embedded text if there is any (text positions start at 0)."""

    def __init__(self, config: PVChatQFormerConfig):
        super().__init__()
        if config.has_text_branch:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, query_embeds: torch.Tensor, input_ids: torch.Tensor | None = None) -> torch.Tensor:
        """(B, Q, D) and (B, L) ids -> (B, Q + L, D)"""
        if input_ids is not None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            text = self.word_embeddings(input_ids) + self.position_embeddings(positions)
            query_embeds = torch.cat([query_embeds, text], dim=1)
        return self.dropout(self.layernorm(query_embeds))


class PVChatQFormerEncoder(nn.Module):
    def __init__(self, config: PVChatQFormerConfig):
        super().__init__()
        self.layer = nn.ModuleList(PVChatQFormerLayer(config, i) for i in range(config.num_hidden_layers))


class PVChatQFormerModel(PreTrainedModel):
    """Queries (and optionally an instruction) read a video."""

    config: PVChatQFormerConfig
    base_model_prefix = "qformer"
    main_input_name = "query_embeds"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PVChatQFormerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": PVChatQFormerLayer,
        "attentions": OutputRecorder(PVChatQFormerMultiHeadAttention, index=1, layer_name="attention.attention"),
        "cross_attentions": OutputRecorder(PVChatQFormerMultiHeadAttention, index=1, layer_name="crossattention"),
    }

    def __init__(self, config: PVChatQFormerConfig):
        super().__init__(config)
        self.embeddings = PVChatQFormerEmbeddings(config)
        self.encoder = PVChatQFormerEncoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        init_router_weights(module)

    @capture_outputs
    def forward(
        self,
        query_embeds: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> PVChatQFormerOutput:
        """Runs the queries over the encoder's states.

        Args:
            query_embeds: (B, Q, D).
            encoder_hidden_states: (B, S, D_enc).
            encoder_attention_mask: (B, S), 1 keeps, 0 hides; `None` keeps all.
            input_ids, attention_mask: (B, L) instruction and its mask, if the model has a text branch.

        Raises:
            ValueError: text is given to a model without a text branch.
        """
        if input_ids is not None and not self.config.has_text_branch:
            raise ValueError("This Q-Former has no text branch (has_text_branch=False): do not pass input_ids.")
        batch, query_length = query_embeds.shape[:2]
        hidden_states = self.embeddings(query_embeds, input_ids)
        if input_ids is not None and attention_mask is not None:
            queries = attention_mask.new_ones(batch, query_length)
            attention_mask = torch.cat([queries, attention_mask], dim=1)
        else:
            attention_mask = None
        mask = create_bidirectional_mask(self.config, hidden_states, attention_mask)
        cross_mask = create_bidirectional_mask(
            self.config, hidden_states[:, :query_length], encoder_attention_mask, encoder_hidden_states
        )

        router_logits: list[torch.Tensor] = []
        alpha_logits: list[torch.Tensor] = []
        for layer in self.encoder.layer:
            hidden_states, *routing = layer(
                want_gradient(layer, hidden_states), query_length, encoder_hidden_states, mask, cross_mask, **kwargs
            )
            router_logits += routing[: len(routing) // 2]
            alpha_logits += routing[len(routing) // 2 :]
        return PVChatQFormerOutput(
            last_hidden_state=hidden_states, router_logits=tuple(router_logits), alpha_logits=tuple(alpha_logits)
        )


def init_router_weights(module: nn.Module):
    """Start of a fresh router: identity keeps the pretrained heads, reference is the authors' declared start."""
    if not isinstance(module, PVChatRouterLinear):
        return
    identity = module.config.routing_init == "identity"
    if identity:
        init.zeros_(module.weight)
    else:
        init.normal_(module.weight, std=module.config.initializer_range)
    if module.bias is not None:
        init.constant_(module.bias, 1.0 if identity else 0.0)


def insert_routers(
    qformer: PVChatQFormerModel,
    routing: str = "remoh",
    routing_start_layer: int | None = None,
    num_shared_heads: int | None = None,
    num_routed_heads: int | None = None,
    num_active_heads: int | None = None,
) -> PVChatQFormerModel:
    """Turns a plain Q-Former into one with routed heads, in place, and updates its config.

    Routers start as the identity, so with `"remoh"` the outputs stay what they were. `"moh"` cannot: it switches heads
    off from its first step. Values left out are those of the config.

    Raises:
        ValueError: the Q-Former is routed already, or the heads do not add up.
    """
    config = qformer.config
    if config.routing != "none":
        raise ValueError(f"The Q-Former already routes its heads (routing={config.routing!r}).")
    changed = {
        "routing": routing,
        "routing_start_layer": routing_start_layer,
        "num_shared_heads": num_shared_heads,
        "num_routed_heads": num_routed_heads,
        "num_active_heads": num_active_heads,
        "routing_init": "identity",
    }
    new = PVChatQFormerConfig(**{**config.to_dict(), **{k: v for k, v in changed.items() if v is not None}})
    for name in changed:
        setattr(config, name, getattr(new, name))
    reference = qformer.embeddings.layernorm.weight
    for index, layer in enumerate(qformer.encoder.layer):
        for block in (layer.attention, layer.crossattention):
            if block is not None and config.is_routed(index):
                router = PVChatHeadRouter(config).to(device=reference.device, dtype=reference.dtype)
                with torch.no_grad():
                    router.apply(init_router_weights)
                block.attention.head_router = router
    return qformer


__all__ = ["PVChatQFormerModel", "PVChatQFormerOutput", "insert_routers", "relu_gates", "top_k_gates", "head_alphas"]
