"""InternVideo2 video encoder.

Shape letters: V videos (or tiles), C channels, T frames, H W pixels, t h w patches, S tokens (1 + t*h*w), D channels,
N heads. Source: the video encoder of InternVideo2-Chat as used by the paper's code (naive attention, exact GELU).
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

from .configuration_pvchat import PVChatVisionConfig


def sincos_1d(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Sine-cosine table, (P,) -> (P, dim), float64."""
    frequencies = 1.0 / 10000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.reshape(-1, 1).to(torch.float64) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_position_embedding(dim: int, grid: tuple[int, int, int]) -> torch.Tensor:
    """Fixed start of the position table, (1, 1 + t*h*w, dim) float32; the cls row is 0.

    The first quarter of the channels encodes time, the other three quarters the place in the frame (x, then y).
    """
    frames, height, width = grid
    temporal, spatial = dim // 4, dim // 4 * 3
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.cat([sincos_1d(x, spatial // 2), sincos_1d(y, spatial // 2)], dim=1)  # (h*w, spatial)
    time = sincos_1d(torch.arange(frames), temporal)  # (t, temporal)
    table = torch.cat(
        [time[:, None].expand(-1, height * width, -1), place[None].expand(frames, -1, -1)], dim=-1
    ).reshape(-1, dim)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), table])[None].float()


def interpolate_position_embedding(
    table: torch.Tensor, old: tuple[int, int, int], new: tuple[int, int, int]
) -> torch.Tensor:
    """Fits a position table (1, 1 + t*h*w, D) to another grid: linear in time, then bicubic in each frame.

    The cls row is untouched. Source: InternVideo2's `interpolate_pos_embed_internvideo2_new`.
    """
    if old == new:
        return table
    cls, rest = table[:, :1], table[:, 1:]
    dim = table.shape[-1]
    rest = rest.reshape(old[0], old[1] * old[2], dim)
    if old[0] != new[0]:
        rest = F.interpolate(rest.permute(1, 2, 0).float(), size=new[0], mode="linear").permute(2, 0, 1)
    if old[1:] != new[1:]:
        frames = rest.reshape(-1, old[1], old[2], dim).permute(0, 3, 1, 2).float()
        frames = F.interpolate(frames, size=new[1:], mode="bicubic", align_corners=False)
        rest = frames.permute(0, 2, 3, 1)
    return torch.cat([cls, rest.reshape(1, -1, dim).to(table.dtype)], dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(V, N, S, d) query, key, value -> (V, S, N, d) and the weights."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def want_gradient(layer: GradientCheckpointingLayer, hidden_states: torch.Tensor) -> torch.Tensor:
    """The input of a layer that is about to run, (V, S, D).

    Reentrant checkpointing gives a layer no gradients, and says nothing, if none of its inputs wants one: with frozen
    embeddings the first layer that trains would stay as it is. Asking here, and not at the embeddings, leaves the
    frozen layers in front of it out of the backward pass.
    """
    asks = layer.training and layer.gradient_checkpointing and torch.is_grad_enabled()
    if asks and not hidden_states.requires_grad and any(p.requires_grad for p in layer.parameters()):
        return hidden_states.detach().requires_grad_()
    return hidden_states


class PVChatVisionRMSNorm(nn.Module):
    """RMSNorm computed in float32 and cast back before the weight is applied."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(hidden_states.dtype)


class PVChatVisionEmbeddings(nn.Module):
    """Patches in space and time, a cls token, and learned position tables for clips and for single images."""

    def __init__(self, config: PVChatVisionConfig):
        super().__init__()
        self.config = config
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        frames, height, width = config.grid
        self.patch_embedding = nn.Conv3d(config.num_channels, config.hidden_size, kernel_size=kernel, stride=kernel)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + frames * height * width, config.hidden_size))
        self.image_position_embedding = nn.Parameter(torch.zeros(1, 1 + height * width, config.hidden_size))

    def patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(V, C, T, H, W) -> (V, t, h, w, D)"""
        return self.patch_embedding(pixel_values).permute(0, 2, 3, 4, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(V, C, T, H, W) -> (V, S, D). A clip of one tubelet is an image and has its own position table."""
        patches = self.patches(pixel_values)
        grid = tuple(patches.shape[1:4])
        tokens = patches.flatten(1, 3)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        if grid[0] == 1:
            table = interpolate_position_embedding(self.image_position_embedding, (1, *self.config.grid[1:]), grid)
        else:
            table = interpolate_position_embedding(self.position_embedding, self.config.grid, grid)
        return tokens + table.to(tokens.dtype)


class PVChatVisionAttention(nn.Module):
    """Multi-head attention whose queries and keys are RMS-normalised over all heads at once."""

    def __init__(self, config: PVChatVisionConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.q_norm = PVChatVisionRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.k_norm = PVChatVisionRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def normed_query_key_value(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(V, S, D) -> three of (V, S, D)"""
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        return self.q_norm(query), self.k_norm(key), value

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(V, S, D) -> (V, S, D) and, from eager attention only, the (V, N, S, S) weights"""
        batch, tokens, dim = hidden_states.shape
        query, key, value = (
            x.view(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
            for x in self.normed_query_key_value(hidden_states)
        )  # (V, N, S, d)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self, query, key, value, None, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.proj(output.reshape(batch, tokens, dim)), weights


class PVChatVisionMLP(nn.Module):
    def __init__(self, config: PVChatVisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN["gelu"]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class PVChatVisionLayer(GradientCheckpointingLayer):
    """Pre-norm block with learned residual scales."""

    def __init__(self, config: PVChatVisionConfig):
        super().__init__()
        self.norm1 = PVChatVisionRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = PVChatVisionAttention(config)
        self.layer_scale1 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init_value))
        self.norm2 = PVChatVisionRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = PVChatVisionMLP(config)
        self.layer_scale2 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init_value))

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """(V, S, D) -> (V, S, D)"""
        attended, _ = self.attention(self.norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.layer_scale1 * attended
        return hidden_states + self.layer_scale2 * self.mlp(self.norm2(hidden_states))


class PVChatVisionModel(PreTrainedModel):
    """InternVideo2 without its final norm: the chat model reads the last block's output, cls token included."""

    config: PVChatVisionConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PVChatVisionEmbeddings", "PVChatVisionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": PVChatVisionLayer, "attentions": PVChatVisionAttention}

    def __init__(self, config: PVChatVisionConfig):
        super().__init__(config)
        self.embeddings = PVChatVisionEmbeddings(config)
        self.layers = nn.ModuleList(PVChatVisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        init_vision_weights(module)

    @capture_outputs
    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        hidden_states: torch.Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Runs blocks `start` to `stop` (exclusive; `None` for all).

        Args:
            pixel_values_videos: (V, C, T, H, W), or instead
            hidden_states: (V, S, D), the states after the first `start` blocks.

        Returns:
            `last_hidden_state` (V, S, D); with `output_hidden_states` and `output_attentions` (eager attention only)
            also the input and output of every block that ran, and its (V, N, S, S) weights.
        """
        if hidden_states is None:
            weight = self.embeddings.patch_embedding.weight
            hidden_states = self.embeddings(pixel_values_videos.to(weight.dtype))
        for layer in self.layers[start:stop]:
            hidden_states = layer(want_gradient(layer, hidden_states), **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


def init_vision_weights(module: nn.Module):
    """Start values of the parameters that are not Linear, Conv or LayerNorm."""
    if isinstance(module, PVChatVisionEmbeddings):
        config = module.config
        init.normal_(module.cls_token, std=config.initializer_range)
        init.copy_(module.position_embedding, sincos_position_embedding(config.hidden_size, config.grid))
        init.copy_(
            module.image_position_embedding, sincos_position_embedding(config.hidden_size, (1, *config.grid[1:]))
        )
    elif isinstance(module, PVChatVisionRMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, PVChatVisionLayer):
        scale = module.attention.config.layer_scale_init_value
        init.constant_(module.layer_scale1, scale)
        init.constant_(module.layer_scale2, scale)


__all__ = ["PVChatVisionModel"]
