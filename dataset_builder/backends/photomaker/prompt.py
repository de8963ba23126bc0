"""The trigger word of PhotoMaker's prompts, and the preparation of the identity pictures.

A prompt names the person by a class word followed by the trigger word: "a photo of a woman img in a garden". The
trigger word leaves the prompt; the class word stands there once for every identity token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ....errors import PVChatError

TRIGGER_WORD = "img"
SIZE = 224  # pixels, of the vision tower
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def expand_class_word(
    input_ids: Sequence[int], trigger_id: int, pad_id: int, num_tokens: int
) -> tuple[list[int], list[bool]]:
    """The ids for the text encoder and the mask of the expanded class word, both as long as `input_ids`.

    input_ids: a prompt with the trigger word, padded or truncated to the tokenizer's length (77). num_tokens: how
    often the word before the trigger stands there afterwards (pictures x tokens per picture); what no longer fits is
    cut off. Raises PVChatError unless the trigger word occurs exactly once. Same results as the original pipeline
    (PhotoMaker 060b4fc, pipeline.py, encode_prompt_with_trigger_word).
    """
    places = [index for index, token in enumerate(input_ids) if token == trigger_id]
    if len(places) != 1:
        raise PVChatError(
            f"A PhotoMaker prompt must hold the trigger word {TRIGGER_WORD!r} exactly once within its first "
            f"{len(input_ids) - 2} tokens, got it {len(places)} times; write for example 'a woman {TRIGGER_WORD} "
            f"reading in a park'."
        )
    length = len(input_ids)
    word = max(places[0] - 1, 0)
    rest = [*input_ids[: places[0]], *input_ids[places[0] + 1 :]]
    expanded = rest[:word] + [rest[word]] * num_tokens + rest[word + 1 :]
    expanded = (expanded + [pad_id])[:length]
    return expanded, [word <= index < word + num_tokens for index in range(length)]


def prepare_pictures(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """Pictures (H, W, 3) uint8 RGB of any sizes -> (N, 3, 224, 224) float32: the shorter side to 224 (bicubic), the
    centre cut out, CLIP's mean and deviation. Equals transformers' CLIPImageProcessor with its defaults."""
    return torch.stack([_prepare(picture) for picture in pictures])


def _prepare(picture: np.ndarray) -> torch.Tensor:
    height, width = picture.shape[:2]
    short = min(height, width)
    size = (int(SIZE * width / short), int(SIZE * height / short))
    image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    return normalise(np.asarray(image.crop((left, top, left + SIZE, top + SIZE))))


def normalise(picture: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 with CLIP's mean and deviation."""
    pixels = torch.tensor(picture).movedim(-1, 0).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std
