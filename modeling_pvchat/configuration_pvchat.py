"""Configurations of PVChat: video encoder, Q-Former with routed heads, language model.

Defaults are those of the published system: InternVideo2-1B, a BERT-base-sized Q-Former whose upper half routes its
heads (ReMoH), and Mistral-7B-Instruct-v0.3.
"""

from transformers import AutoConfig

# `strict` is huggingface_hub's; by way of transformers, remote code needs no package that its loader does not name.
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec, strict

ROUTINGS = ("none", "moh", "remoh")
ROUTING_INITS = ("identity", "reference")
# Written into every saved config. transformers adds only the one Auto class that a model was made or loaded with.
AUTO_MAP = {
    "AutoConfig": "configuration_pvchat.PVChatConfig",
    "AutoModel": "modeling_pvchat.PVChatModel",
    "AutoModelForImageTextToText": "modeling_pvchat.PVChatForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_pvchat.PVChatForConditionalGeneration",
    "AutoProcessor": "processing_pvchat.PVChatProcessor",
    "AutoVideoProcessor": "video_processing_pvchat.PVChatVideoProcessor",
}

# Mistral-7B-Instruct-v0.3 where it differs from `MistralConfig`, plus two rows for `<video>` and `<sks>`.
MISTRAL_7B_V03 = {
    "vocab_size": 32768 + 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_window": None,
}


@strict
class PVChatVisionConfig(PreTrainedConfig):
    r"""InternVideo2 video encoder.

    Args:
        num_hidden_layers: blocks that are built and run. The published encoder has 40 and the chat model reads the
            output of the 39th, so 39 are built.
        tubelet_size: frames per patch in time. `num_frames` must be a multiple of it.
        layer_norm_eps: epsilon of the LayerNorm between encoder and Q-Former.
        layer_scale_init_value: start value of the per-channel residual scales. The published encoder starts at 1e-5
            and learns them; a small encoder trained from scratch wants 0.1 or more.
    """

    model_type = "pvchat_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    num_frames: int = 8
    tubelet_size: int = 1
    rms_norm_eps: float = 1e-6
    layer_norm_eps: float = 1e-12
    layer_scale_init_value: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}."
            )
        if self.num_frames % self.tubelet_size:
            raise ValueError(
                f"num_frames must be a multiple of tubelet_size, got {self.num_frames} and {self.tubelet_size}."
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches in time, height and width of a full clip."""
        side = self.image_size // self.patch_size
        return self.num_frames // self.tubelet_size, side, side


@strict
class PVChatQFormerConfig(PreTrainedConfig):
    r"""Q-Former (BLIP-2's BERT with queries) with an optional mixture of its attention heads.

    Args:
        routing: `"none"` plain attention; `"remoh"` ReLU-routed mixture of heads (the paper's); `"moh"` softmax top-k
            mixture of heads (the paper's ablation).
        routing_start_layer: first layer whose self- and cross-attention are routed.
        num_shared_heads: heads that are always on (the first ones).
        num_routed_heads: heads behind the router (the last ones). Shared and routed must add up to all heads.
        num_active_heads: routed heads a token is meant to use: top-k of `"moh"`, and `1 - num_active_heads /
            num_routed_heads` is the target sparsity of `"remoh"`.
        alpha_scale: factor on `softmax(W_h x)`. 2 keeps the mean head scale at 1, so that routers can be inserted into
            a pretrained Q-Former without changing it; the authors' code uses 1.
        routing_init: how fresh routers start. `"identity"`: every head weighs `alpha_scale / 2`. `"reference"`: the
            authors' declared initialisation (normal weights, zero bias), which silences pretrained heads.
        has_text_branch: word embeddings and the feed-forward of text tokens. Queries alone never touch them.
        drop_path_rate: stochastic depth of the last layer; earlier layers get a linear share.
    """

    model_type = "pvchat_qformer"
    base_config_key = "qformer_config"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    encoder_hidden_size: int = 1408
    cross_attention_frequency: int = 2
    vocab_size: int = 30523
    max_position_embeddings: int = 512
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    drop_path_rate: float = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    has_text_branch: bool = True

    routing: str = "remoh"
    routing_start_layer: int = 6
    num_shared_heads: int = 8
    num_routed_heads: int = 4
    num_active_heads: int = 2
    alpha_scale: float = 2.0
    routing_init: str = "identity"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.routing not in ROUTINGS:
            raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, got {self.routing!r}.")
        if self.routing_init not in ROUTING_INITS:
            raise ValueError(f"routing_init must be one of {', '.join(ROUTING_INITS)}, got {self.routing_init!r}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
        if self.routing != "none" and self.num_shared_heads + self.num_routed_heads != self.num_attention_heads:
            raise ValueError(
                f"num_shared_heads + num_routed_heads must equal num_attention_heads = {self.num_attention_heads}, "
                f"got {self.num_shared_heads} + {self.num_routed_heads}."
            )
        if self.routing != "none" and not 0 < self.num_active_heads <= self.num_routed_heads:
            raise ValueError(
                f"num_active_heads must be 1 to num_routed_heads = {self.num_routed_heads}, "
                f"got {self.num_active_heads}."
            )

    def has_cross_attention(self, layer: int) -> bool:
        return layer % self.cross_attention_frequency == 0

    def is_routed(self, layer: int) -> bool:
        return self.routing != "none" and layer >= self.routing_start_layer

    @property
    def target_sparsity(self) -> float:
        """Share of routed heads that should be silent (T_s of the paper)."""
        return 1.0 - self.num_active_heads / self.num_routed_heads


@strict
class PVChatConfig(PreTrainedConfig):
    r"""The whole model.

    Args:
        num_query_tokens, num_extra_query_tokens: learned queries of the base model (32 + 64 in InternVideo2-Chat-HD).
        num_subject_tokens: queries that belong to the subject; appended last.
        tile_grid: columns and rows of local views of a frame, before the global view; `None` for the global view only.
        video_token_id: id of the `<video>` placeholder, one per projected query.
        subject_token_id: id of `<sks>`, the one token that stands for the person's name.
    """

    model_type = "pvchat"
    sub_configs_defaults = {
        "vision_config": PVChatVisionConfig,
        "qformer_config": PVChatQFormerConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="mistral", init_kwargs=MISTRAL_7B_V03),
    }

    vision_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_query_tokens: int = 32
    num_extra_query_tokens: int = 64
    num_subject_tokens: int = 16
    tile_grid: list[int] | tuple[int, ...] | None = (2, 1)
    video_token_id: int = 32768
    subject_token_id: int = 32769
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        self.auto_map = dict(AUTO_MAP)

    @property
    def num_tiles(self) -> int:
        """Views of a clip that are encoded on their own: the local tiles, then the global one."""
        return 1 if self.tile_grid is None else self.tile_grid[0] * self.tile_grid[1] + 1

    @property
    def tokens_per_tile(self) -> int:
        return self.num_query_tokens + self.num_extra_query_tokens + self.num_subject_tokens

    @property
    def num_video_tokens(self) -> int:
        """Placeholders that one video fills in the prompt."""
        return self.num_tiles * self.tokens_per_tile


__all__ = ["PVChatConfig", "PVChatQFormerConfig", "PVChatVisionConfig"]
