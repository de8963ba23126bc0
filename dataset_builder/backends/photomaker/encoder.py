"""PhotoMaker's identity encoders. Module names follow the published files (photomaker-v1.bin, photomaker-v2.bin), so
that these load with `strict=True`.

Shapes: N pictures, L = 77 prompt tokens, T tokens per picture, D = 2048 channels of SDXL's two text encoders side by
side, P = 257 tokens of the vision tower (one picture, 224 pixels), C = 1024 its width, E = 512 (ArcFace).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

TEXT_WIDTHS = (768, 1280)  # of SDXL's two text encoders
HEAD_DIM = 128  # of the V2 resampler


def vision_config(**changes) -> CLIPVisionConfig:
    """CLIP ViT-L/14, 224 pixels: the vision tower of both versions."""
    sizes = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "projection_dim": TEXT_WIDTHS[0],
    }
    return CLIPVisionConfig(**(sizes | changes))


class MLP(nn.Module):
    """Normalise, expand, GELU, project; with a residual connection where the widths allow it."""

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, residual: bool):
        super().__init__()
        self.layernorm = nn.LayerNorm(in_dim)
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc2(F.gelu(self.fc1(self.layernorm(x))))
        return x + y if self.residual else y


class FuseModule(nn.Module):
    """Merges the embedding of the class word with the identity embeddings (paper, equation 1)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.mlp1 = MLP(2 * embed_dim, embed_dim, embed_dim, residual=False)
        self.mlp2 = MLP(embed_dim, embed_dim, embed_dim, residual=True)
        self.layer_norm = nn.LayerNorm(embed_dim)

    def forward(self, prompt_embeds: torch.Tensor, id_embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """prompt_embeds (1, L, D), id_embeds (1, N, T, D), mask (1, L) bool, true at the expanded class word
        -> (1, L, D). A long prompt may have cut the class word short: then the first pictures are used."""
        class_word = prompt_embeds[mask]  # (<= N * T, D)
        identity = id_embeds.flatten(0, -2)[: len(class_word)]
        fused = self.mlp1(torch.cat([class_word, identity], -1)) + class_word
        fused = self.layer_norm(self.mlp2(fused))
        return prompt_embeds.masked_scatter(mask[..., None], fused.to(prompt_embeds.dtype))


class PhotoMakerIDEncoder(CLIPVisionModelWithProjection):
    """V1: each picture becomes one token of D channels (T = 1)."""

    num_tokens = 1

    def __init__(self, config: CLIPVisionConfig | None = None):
        super().__init__(config or vision_config())
        self.visual_projection_2 = nn.Linear(self.config.hidden_size, TEXT_WIDTHS[1], bias=False)
        self.fuse_module = FuseModule(sum(TEXT_WIDTHS))

    def forward(
        self, id_pixel_values: torch.Tensor, prompt_embeds: torch.Tensor, class_tokens_mask: torch.Tensor
    ) -> torch.Tensor:
        """id_pixel_values (1, N, 3, H, W) as `prompt.prepare_pictures` gives them, prompt_embeds (1, L, D),
        class_tokens_mask (1, L) bool -> prompt embeddings with the identity (1, L, D)."""
        B, N = id_pixel_values.shape[:2]
        pooled = self.vision_model(id_pixel_values.flatten(0, 1)).pooler_output  # (B * N, C)
        id_embeds = torch.cat([self.visual_projection(pooled), self.visual_projection_2(pooled)], -1)
        return self.fuse_module(prompt_embeds, id_embeds.view(B, N, 1, -1), class_tokens_mask)


class PhotoMakerIDEncoderV2(CLIPVisionModelWithProjection):
    """V2: each picture becomes T = 2 tokens, made from its ArcFace embedding and refined by attention to the patches.

    `visual_projection` and `visual_projection_2` are in the published file and unused.
    """

    num_tokens = 2

    def __init__(self, config: CLIPVisionConfig | None = None, id_embeddings_dim: int = 512):
        super().__init__(config or vision_config())
        D = sum(TEXT_WIDTHS)
        self.fuse_module = FuseModule(D)
        self.visual_projection_2 = nn.Linear(self.config.hidden_size, TEXT_WIDTHS[1], bias=False)
        self.qformer_perceiver = QFormerPerceiver(id_embeddings_dim, D, self.num_tokens, self.config.hidden_size)

    def forward(
        self,
        id_pixel_values: torch.Tensor,
        prompt_embeds: torch.Tensor,
        class_tokens_mask: torch.Tensor,
        id_embeds: torch.Tensor,
    ) -> torch.Tensor:
        """As V1, plus id_embeds (1, N, E): ArcFace embeddings as the network gives them, not normalised."""
        B, N = id_pixel_values.shape[:2]
        patches = self.vision_model(id_pixel_values.flatten(0, 1)).last_hidden_state  # (B * N, P, C)
        tokens = self.qformer_perceiver(id_embeds.flatten(0, 1), patches)  # (B * N, T, D)
        return self.fuse_module(prompt_embeds, tokens.view(B, N, self.num_tokens, -1), class_tokens_mask)


class QFormerPerceiver(nn.Module):
    """A face embedding and the patches of its picture -> T tokens of `cross_attention_dim` channels."""

    def __init__(
        self, id_embeddings_dim: int, cross_attention_dim: int, num_tokens: int, embedding_dim: int, ratio: int = 4
    ):
        super().__init__()
        self.num_tokens = num_tokens
        self.token_proj = nn.Sequential(
            nn.Linear(id_embeddings_dim, ratio * id_embeddings_dim),
            nn.GELU(),
            nn.Linear(ratio * id_embeddings_dim, cross_attention_dim * num_tokens),
        )
        self.token_norm = nn.LayerNorm(cross_attention_dim)
        self.perceiver_resampler = FacePerceiver(cross_attention_dim, embedding_dim)

    def forward(self, face: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """face (N, E), patches (N, P, C) -> (N, T, D)"""
        tokens = self.token_norm(self.token_proj(face).unflatten(-1, (self.num_tokens, -1)))
        return tokens + self.perceiver_resampler(tokens, patches)


class FacePerceiver(nn.Module):
    """Four layers of attention from the tokens to the patches and themselves."""

    def __init__(self, dim: int, embedding_dim: int, depth: int = 4):
        super().__init__()
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(nn.ModuleList([PerceiverAttention(dim), _feed_forward(dim)]) for _ in range(depth))

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        patches = self.proj_in(patches)
        for attention, feed_forward in self.layers:
            tokens = tokens + attention(tokens, patches)
            tokens = tokens + feed_forward(tokens)
        return self.norm_out(self.proj_out(tokens))


class PerceiverAttention(nn.Module):
    """tokens (N, T, D) attend to the patches (N, P, D) and to themselves; heads of HEAD_DIM channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)  # of the patches
        self.norm2 = nn.LayerNorm(dim)  # of the tokens
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        tokens, patches = self.norm2(tokens), self.norm1(patches)
        q = self.to_q(tokens)
        k, v = self.to_kv(torch.cat([patches, tokens], 1)).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for x in (q, k, v))  # (N, heads, tokens, HEAD_DIM)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(attended.transpose(1, 2).flatten(2))


def _feed_forward(dim: int, ratio: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, ratio * dim, bias=False),
        nn.GELU(),
        nn.Linear(ratio * dim, dim, bias=False),
    )
