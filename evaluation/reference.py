"""Controls that know the subject from the reference clip without any training.

PVChat reads one video per prompt. Its language model, though, reads one text in which videos are runs of tokens, so
the reference clip can be shown the way a conversation would show it: as an earlier turn, with all its frames, and a
sentence that names the person. Nothing is squeezed: both clips keep the frames that they have alone.

    [reference clip] Who is in this video? This is <Nz>.   [clip] question

(Joining the two clips to one video would halve the frames of each and let the Q-Former mix them.) A base that was
never shown two videos may make little of it; that is the honest value of this control for that base. It may have
another way to be shown a person: the slots of its subject tokens. `reference_as_tokens` fills them with what the base
itself says about the reference clip (`PVChatModel.propose_subject_tokens`), which is also where training may start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch

from ..errors import PVChatError
from ..session import Video, VideoChat, _rows_of

INTRODUCTION = "Who is in this video?"


def reference_clips(dataset) -> list:
    """Rows of the reference clips.

    Raises:
        PVChatError: the training split has none.
    """
    rows = [row for row in dataset.split("train") if row.origin == "original" and row.subject_present]
    if not rows:
        raise PVChatError("the training split lacks the reference clip")
    return rows


class ReferenceFirst(VideoChat):
    """Answers as `chat` does now (inside `answering_with(None)`: as the base), after the reference clip was shown.

    The reference clip is encoded once; the clips of the questions follow in the same prompt.

    Args:
        chat: a `VideoChat`.
        reference: a video file or frames.
        name: of the person in it.

    Raises:
        PVChatError: two clips and a question do not fit into the model's context.
    """

    def __init__(self, chat: VideoChat, reference: Video, name: str):
        super().__init__(chat.model, chat.processor, chat.subject)
        self._reference = reference
        self._one_clip = self._prefix
        self._sentence = self.processor.encode_qa(INTRODUCTION, f"This is {name}.", self.subject)[0]
        self._prefix = [*self._one_clip, *self._sentence, *self._one_clip]
        room = self._context - len(self._prefix)
        if room < len(self._one_clip):
            raise PVChatError(f"two clips take {len(self._prefix)} of the {self._context} tokens this model reads")

    @cached_property
    @torch.inference_mode()
    def _shown(self):
        """Key-value cache of the reference clip and the sentence, one row."""
        ids = torch.tensor([self._sentence], device=self._net.device)
        cache = self._after(None, self._pixels([self._reference]))
        return self._net(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def _read(self, pixels: torch.Tensor):
        first = torch.zeros(len(pixels), dtype=torch.long, device=self._net.device)
        return self._after(_rows_of(self._shown, first), pixels)

    def _after(self, cache, pixels: torch.Tensor):
        """The cache, continued by one clip in each row."""
        return self._net(
            input_ids=torch.tensor([self._one_clip] * len(pixels), device=self._net.device),
            pixel_values_videos=pixels.to(self._net.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values


@contextmanager
@torch.no_grad()
def subject_tokens_of(chat: VideoChat, references: Sequence[Video]) -> Iterator[None]:
    """Inside, the base's subject tokens are what the base says about these clips (the mean of several).

    To be used where the base answers: inside `answering_with(None)`, or for a model without an adapter.

    Raises:
        PVChatError: a clip cannot be read.
    """
    inner = chat._net.model
    tokens = getattr(inner.subject_tokens, "original_module", inner.subject_tokens).weight
    before = tokens.detach().clone()
    proposed = [inner.propose_subject_tokens(video[None].to(tokens.device)) for video in chat._pixels(references)]
    tokens.copy_(torch.cat(proposed).mean(dim=0))
    try:
        yield
    finally:
        tokens.copy_(before)
