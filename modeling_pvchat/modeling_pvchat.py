"""PVChat: a video language model that can be taught to recognise a person.

    clip tiles -> InternVideo2 -> LayerNorm -> Q-Former (queries, extra queries, subject tokens) -> projector
               -> the <video> placeholders of the prompt -> language model

Shape letters: B rows, L tokens, V videos, N tiles of a video, T frames, S encoder tokens, Q queries of a tile,
D_v D_q D_t channels of encoder, Q-Former and language model, R routed heads.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.import_utils import torch_compilable_check

from .configuration_pvchat import PVChatConfig
from .modeling_internvideo2 import PVChatVisionModel, init_vision_weights
from .modeling_qformer import PVChatQFormerModel, init_router_weights


@dataclass
class PVChatVideoFeatures(BaseModelOutputWithPooling):
    """What the language model reads of a video.

    Args:
        last_hidden_state: (V * N, Q, D_q) Q-Former output.
        pooler_output: (V, N * Q, D_t), tile after tile.
        hidden_states, attentions: of the video encoder, if asked for, see `PVChatVisionModel.forward`.
        router_logits, alpha_logits: per routed attention, (V * N, Q, R) and (V * N, Q, 2).
    """

    router_logits: tuple[torch.Tensor, ...] | None = None
    alpha_logits: tuple[torch.Tensor, ...] | None = None


@dataclass
class PVChatModelOutput(BaseModelOutputWithPast):
    """Hidden states (B, L, D_t) of the language model; routing tensors as in `PVChatVideoFeatures`."""

    router_logits: tuple[torch.Tensor, ...] | None = None
    alpha_logits: tuple[torch.Tensor, ...] | None = None
    video_hidden_states: torch.Tensor | None = None


@dataclass
class PVChatCausalLMOutput(CausalLMOutputWithPast):
    """Loss (scalar, if labels were given) and logits (B, L, vocabulary); routing as in `PVChatVideoFeatures`."""

    router_logits: tuple[torch.Tensor, ...] | None = None
    alpha_logits: tuple[torch.Tensor, ...] | None = None
    video_hidden_states: torch.Tensor | None = None


class PVChatPreTrainedModel(PreTrainedModel):
    config: PVChatConfig
    base_model_prefix = "model"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["PVChatVisionEmbeddings", "PVChatVisionLayer", "PVChatQFormerLayer"]
    _skip_keys_device_placement = "past_key_values"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        init_vision_weights(module)
        init_router_weights(module)


class PVChatModel(PVChatPreTrainedModel):
    """Video encoder, Q-Former, projector and the language model without its head."""

    def __init__(self, config: PVChatConfig):
        super().__init__(config)
        hidden = config.qformer_config.hidden_size
        self.vision_tower = PVChatVisionModel._from_config(config.vision_config)
        self.vision_layernorm = nn.LayerNorm(config.vision_config.hidden_size, eps=config.vision_config.layer_norm_eps)
        self.query_tokens = nn.Embedding(config.num_query_tokens, hidden)
        self.extra_query_tokens = nn.Embedding(config.num_extra_query_tokens, hidden)
        self.subject_tokens = nn.Embedding(config.num_subject_tokens, hidden)
        self.qformer = PVChatQFormerModel._from_config(config.qformer_config)
        self.multi_modal_projector = nn.Linear(hidden, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def encode_video(self, pixel_values_videos: torch.Tensor, num_layers: int | None = None) -> torch.Tensor:
        """Runs the first `num_layers` blocks of the video encoder (all by default).

        Args:
            pixel_values_videos: (V, N, T, C, H, W).

        Returns:
            (V, N, S, D_v), before `vision_layernorm`; may be passed back as `vision_hidden_states`.
        """
        clips = pixel_values_videos.flatten(0, 1).transpose(1, 2)  # (V*N, C, T, H, W)
        states = self.vision_tower(clips, stop=num_layers).last_hidden_state
        return states.unflatten(0, pixel_values_videos.shape[:2])

    def query_embeds(self, batch: int, device: torch.device) -> torch.Tensor:
        """All queries, subject tokens last, for every clip: (batch, Q, D_q) on `device`.

        Embeddings are looked up with (batch, n) ids so that a batch may mix subjects.
        """
        config = self.config
        tables = (self.query_tokens, self.extra_query_tokens, self.subject_tokens)
        counts = (config.num_query_tokens, config.num_extra_query_tokens, config.num_subject_tokens)
        ids = [torch.arange(count, device=device).expand(batch, -1) for count in counts]
        return torch.cat([table(i).to(device) for table, i in zip(tables, ids, strict=True) if i.shape[1]], dim=1)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        vision_layers_done: int | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> PVChatVideoFeatures:
        """Video to language-model-ready tokens.

        Args:
            pixel_values_videos: (V, N, T, C, H, W) pixels, or instead
            vision_hidden_states: (V, N, S, D_v) states after `vision_layers_done` encoder blocks (all by default).
            qformer_input_ids, qformer_attention_mask: (V * N, L_q) instruction for the Q-Former (the base model's
                training used one; PVChat's does not).
            kwargs: `output_hidden_states` and `output_attentions` of the video encoder.

        Raises:
            ValueError: both or neither of pixels and states are given.
        """
        if (pixel_values_videos is None) == (vision_hidden_states is None):
            raise ValueError("Give pixel_values_videos or vision_hidden_states, one of the two.")
        blocks = len(self.vision_tower.layers)
        if vision_hidden_states is None:
            vision_hidden_states, vision_layers_done = self.encode_video(pixel_values_videos, num_layers=0), 0
        done = blocks if vision_layers_done is None else vision_layers_done
        videos, tiles = vision_hidden_states.shape[:2]
        states = vision_hidden_states.flatten(0, 1)
        if done < blocks:
            states = states.to(self.dtype)
        encoded = self.vision_tower(hidden_states=states, start=done, **kwargs)
        encoder_states = self.vision_layernorm(encoded.last_hidden_state.to(self.vision_layernorm.weight.dtype))
        outputs = self.qformer(
            self.query_embeds(videos * tiles, encoder_states.device),
            encoder_states,
            input_ids=qformer_input_ids,
            attention_mask=qformer_attention_mask,
        )
        queries = outputs.last_hidden_state[:, : self.config.tokens_per_tile]
        features = self.multi_modal_projector(queries).reshape(videos, tiles * self.config.tokens_per_tile, -1)
        return PVChatVideoFeatures(
            pooler_output=features,
            last_hidden_state=queries,
            router_logits=outputs.router_logits,
            alpha_logits=outputs.alpha_logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def pool_to_subject_tokens(self, queries: torch.Tensor) -> torch.Tensor:
        """Q-Former outputs (B, Q, D_q) -> (B, num_subject_tokens, D_q): the general queries' outputs, neighbours
        averaged where there are more of them than subject tokens."""
        general = queries[:, : self.config.num_query_tokens + self.config.num_extra_query_tokens]
        return F.adaptive_avg_pool1d(general.transpose(1, 2), self.config.num_subject_tokens).transpose(1, 2)

    def propose_subject_tokens(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        vision_layers_done: int | None = None,
    ) -> torch.Tensor:
        """Subject tokens for the person in each video: (V, num_subject_tokens, D_q).

        They are what the Q-Former says about the video, averaged over its tiles. A base that was taught to compare
        people (as `pvchat-cartoon` was) recognises the person by them before any training; for another base they are
        a starting point. Arguments and errors as in `get_video_features`.
        """
        features = self.get_video_features(pixel_values_videos, vision_hidden_states, vision_layers_done)
        videos = features.pooler_output.shape[0]
        return self.pool_to_subject_tokens(features.last_hidden_state).unflatten(0, (videos, -1)).mean(dim=1)

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, video_features: torch.Tensor
    ) -> torch.Tensor:
        """(B, L, D_t) boolean mask of the `<video>` positions: by id, or without ids by the embedding of `<video>`.

        Raises:
            ValueError: the prompt has another number of placeholders than there are video tokens.
        """
        if input_ids is None:
            placeholder = torch.tensor(self.config.video_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)
        else:
            mask = input_ids == self.config.video_token_id
        placeholders, (videos, tokens) = mask.sum(), video_features.shape[:2]
        torch_compilable_check(
            placeholders == videos * tokens,
            lambda: (
                f"The prompt has {int(placeholders)} <video> placeholders but the videos give "
                f"{videos * tokens} tokens ({videos} videos of {tokens})."
            ),
        )
        return mask[..., None].expand_as(inputs_embeds)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        vision_layers_done: int | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, PVChatVideoFeatures] | None = None,
        **kwargs,
    ) -> PVChatModelOutput:
        """Reads text with videos in it.

        Args:
            input_ids: (B, L); videos fill the `<video>` placeholders in order.
            pixel_values_videos, vision_hidden_states, vision_layers_done, qformer_*: see `get_video_features`. Ignored
                after the start of a sequence when `input_ids` holds no placeholder (decoding steps).
            attention_mask: (B, L) of 0 and 1, or a prepared (B, 1, L, L) mask.
            inputs_embeds: (B, L, D_t) instead of ids; placeholders are the positions that hold `<video>`'s embedding.
            mm_encoder_outputs: `{"video": get_video_features(...)}` in place of pixels or states. `generate` uses it,
                so that a video is encoded once however many beams read it.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, a placeholder mismatch, or no video at all
                for the placeholders.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds, one of the two.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        has_video = pixel_values_videos is not None or vision_hidden_states is not None
        if has_video and mm_encoder_outputs:
            raise ValueError("Give videos or mm_encoder_outputs, one of the two.")
        features = (mm_encoder_outputs or {}).get("video")
        if has_video and not self._continues(input_ids, past_key_values):
            features = self.get_video_features(
                pixel_values_videos,
                vision_hidden_states,
                vision_layers_done,
                qformer_input_ids,
                qformer_attention_mask,
                return_dict=True,
            )
        if features is not None:
            video_embeds = features.pooler_output.to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, video_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(mask, video_embeds)
        elif not has_video:
            self._check_text_only(input_ids, past_key_values)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return PVChatModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=features.router_logits if features is not None else None,
            alpha_logits=features.alpha_logits if features is not None else None,
            video_hidden_states=features.pooler_output if features is not None else None,
        )

    def _continues(self, input_ids: torch.Tensor | None, past_key_values: Cache | None) -> bool:
        """Whether these tokens go on with a sequence whose videos have been read: they hold no placeholder."""
        if input_ids is None or past_key_values is None or past_key_values.get_seq_length() == 0:
            return False
        return not (input_ids == self.config.video_token_id).any()

    def _check_text_only(self, input_ids: torch.Tensor | None, past_key_values: Cache | None) -> None:
        if input_ids is None or torch.compiler.is_compiling():
            return
        starts = past_key_values is None or past_key_values.get_seq_length() == 0
        if starts and (input_ids == self.config.video_token_id).any():
            raise ValueError("The prompt has <video> placeholders but no video was given.")


class PVChatForConditionalGeneration(PVChatPreTrainedModel, GenerationMixin):
    """PVChat with its language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: PVChatConfig):
        super().__init__(config)
        self.model = PVChatModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_video_features(self, *args, **kwargs) -> PVChatVideoFeatures:
        """See `PVChatModel.get_video_features`."""
        return self.model.get_video_features(*args, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        *args,
        vision_hidden_states: torch.Tensor | None = None,
        vision_layers_done: int | None = None,
        **kwargs,
    ):
        """As in transformers; encoder states may stand in for pixels, see `PVChatModel.get_video_features`."""
        if vision_hidden_states is not None:
            names = ("qformer_input_ids", "qformer_attention_mask")
            instruction = {name: kwargs.pop(name) for name in names if name in kwargs}
            features = self.get_video_features(None, vision_hidden_states, vision_layers_done, **instruction)
            kwargs["mm_encoder_outputs"] = {"video": features}
        return super().generate(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        vision_layers_done: int | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, PVChatVideoFeatures] | None = None,
        **kwargs,
    ) -> PVChatCausalLMOutput:
        """As `PVChatModel.forward`, plus the head.

        Args:
            labels: (B, L), -100 where no loss is wanted; shifted inside.
            logits_to_keep: compute logits of the last so many positions only (0: all), or of these positions.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values_videos=pixel_values_videos,
            vision_hidden_states=vision_hidden_states,
            vision_layers_done=vision_layers_done,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return PVChatCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            alpha_logits=outputs.alpha_logits,
            video_hidden_states=outputs.video_hidden_states,
        )


__all__ = ["PVChatForConditionalGeneration", "PVChatModel", "PVChatPreTrainedModel"]
