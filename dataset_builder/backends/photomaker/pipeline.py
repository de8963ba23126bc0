"""PhotoMaker on top of diffusers' StableDiffusionXLPipeline: the text guides the first denoising steps, the text with
the identity the rest (paper, section 3.3; original pipeline 060b4fc, `start_merge_step`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .prompt import TRIGGER_WORD, expand_class_word


@dataclass(frozen=True)
class PromptEmbeddings:
    """What guides the denoising. L = 77 tokens, D = 2048, pooled (1, 1280).

    text, negative: (1, L, D) of the prompt without the trigger word and of the negative prompt. expanded: (1, L, D) of
    the prompt with the expanded class word; identity: the same after the identity encoder. mask: (1, L) bool, true at
    the expanded class word.
    """

    text: torch.Tensor
    text_pooled: torch.Tensor
    expanded: torch.Tensor
    identity: torch.Tensor
    identity_pooled: torch.Tensor
    negative: torch.Tensor
    negative_pooled: torch.Tensor
    mask: torch.Tensor


def remove_trigger(prompt: str) -> str:
    """The prompt without the trigger word and the space before it."""
    return re.sub(rf"\s*\b{TRIGGER_WORD}\b", "", prompt, count=1).strip()


@torch.no_grad()
def encode_prompt(
    pipe: Any,
    id_encoder: nn.Module,
    prompt: str,
    negative_prompt: str,
    pictures: torch.Tensor,
    id_embeds: torch.Tensor | None = None,
) -> PromptEmbeddings:
    """pipe: a StableDiffusionXLPipeline. id_encoder: a PhotoMakerIDEncoder, or V2 with id_embeds (N, 512).
    pictures: (N, 3, H, W) as `prompt.prepare_pictures` gives them.

    Raises PVChatError unless the prompt holds the trigger word exactly once.
    """
    device = pipe._execution_device
    hidden, mask = [], None
    for tokenizer, text_encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        tokenizer.add_tokens([TRIGGER_WORD], special_tokens=True)
        ids = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
        ids, class_word = expand_class_word(
            ids,
            tokenizer.convert_tokens_to_ids(TRIGGER_WORD),
            tokenizer.pad_token_id,
            len(pictures) * id_encoder.num_tokens,
        )
        encoded = text_encoder(torch.tensor([ids], device=device), output_hidden_states=True)
        hidden.append(encoded.hidden_states[-2])
        mask = torch.tensor([class_word], device=device)
    expanded = torch.cat(hidden, -1)
    parameter = next(id_encoder.parameters())
    extra = [] if id_embeds is None else [id_embeds[None].to(parameter)]
    identity = id_encoder(pictures[None].to(parameter), expanded.to(parameter), mask.to(parameter.device), *extra)
    text, negative, text_pooled, negative_pooled = pipe.encode_prompt(
        remove_trigger(prompt), device=device, negative_prompt=negative_prompt
    )
    return PromptEmbeddings(
        text=text,
        text_pooled=text_pooled,
        expanded=expanded,
        identity=identity.to(text),
        identity_pooled=encoded.text_embeds,
        negative=negative,
        negative_pooled=negative_pooled,
        mask=mask,
    )


def denoise(pipe: Any, embeddings: PromptEmbeddings, *, start_merge_step: int, **arguments: Any) -> Any:
    """Runs the pipeline: steps 0 to `start_merge_step` see the text, the later ones the text with the identity.

    arguments: of StableDiffusionXLPipeline.__call__ (steps, guidance, size, generator, ...); returns its output.
    """
    e = embeddings

    def switch(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if step != start_merge_step:
            return {}
        guided = len(tensors["prompt_embeds"]) > len(e.identity)  # classifier-free guidance: the negative goes first
        return {
            "prompt_embeds": torch.cat([e.negative, e.identity]) if guided else e.identity,
            "add_text_embeds": torch.cat([e.negative_pooled, e.identity_pooled]) if guided else e.identity_pooled,
        }

    return pipe(
        prompt_embeds=e.text,
        pooled_prompt_embeds=e.text_pooled,
        negative_prompt_embeds=e.negative,
        negative_pooled_prompt_embeds=e.negative_pooled,
        callback_on_step_end=switch,
        callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds"],
        **arguments,
    )
