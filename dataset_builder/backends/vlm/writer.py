"""Role QAWriter by any image-text-to-text model with a chat template.

All questions of a clip share its encoding. A prompt is `[prefix with the clip | question | answer]`; the prefix is
read once, and its key-value cache, repeated for N questions, is continued greedily:

    cache      [ prefix, once for all rows | left padding, question | answer so far ]
    positions    0 ... P-1                   P ... P+l-1              P+l ...

Models with M-RoPE count a clip's tokens by place and time; their text goes on at P + rope_deltas. Where a layer keeps
a state that padding would disturb, or only a window (Qwen3.5, Gemma 3), the questions are one batch of whole prompts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...video_io import read_video
from ..common import LoadsOnce, load_chat_model, load_weights, model_revision, weights_id

QWEN = "Qwen/Qwen3-VL-8B-Instruct"
FRAMES = 16  # of a clip that the model sees, evenly spaced
MAX_NEW_TOKENS = 96
QUESTIONS_AT_ONCE = 16  # rows of a batch; at 8B a row takes about 0.3 GB
INSTRUCTION = "Answer in one or two short sentences, and say only what can be seen."


class ChatWriter(LoadsOnce):
    """load: gives an `AutoModelForImageTextToText` and its processor, with a chat template; called at the first clip.
    A processor without videos gets the frames as pictures. name: for the id; changes when the weights do. licences: of
    the weights.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Any, Any]],
        name: str,
        licences: tuple[str, ...] = ("Apache-2.0",),
        max_new_tokens: int = MAX_NEW_TOKENS,
    ):
        super().__init__(load)
        self.id = f"chat@1:{name}"
        self.licences = licences
        self.max_new_tokens = max_new_tokens
        self._shares_prefix = True

    @classmethod
    def from_pretrained(cls, name: str = QWEN, licence: str = "Apache-2.0") -> ChatWriter:
        """From a folder or the Hub. licence: of these weights.

        Raises MissingBackendError when there is no such model; at the first clip, when it cannot be loaded.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        revision = load_weights(model_revision, name, licence)
        load = partial(load_chat_model, AutoModelForImageTextToText, AutoProcessor, name, licence, revision)
        return cls(load, weights_id(name, revision), (licence,))

    @property
    def model(self) -> Any:
        return self._loaded[0]

    @property
    def processor(self) -> Any:
        return self._loaded[1]

    @cached_property
    def _ends(self) -> set[int]:
        """The tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return {end for end in (*ends, self.processor.tokenizer.eos_token_id) if end is not None}

    def write(self, video: Path, questions: Sequence[str]) -> list[str]:
        """One answer per question, in order; each as if it had been the only one. Raises PVChatError for an unreadable
        video."""
        frames, fps = read_video(video, max_frames=FRAMES)
        answers: list[str] = []
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            answers += self._answer(frames, fps, questions[start : start + QUESTIONS_AT_ONCE])
        return answers

    def _answer(self, frames: np.ndarray, fps: float, questions: Sequence[str]) -> list[str]:
        texts = self._prompts(len(frames), questions)
        if self._shares_prefix:
            answers = self._continue_prefix(frames, fps, texts)
            if answers is not None:
                return answers
            self._shares_prefix = False
        return self._generate(frames, fps, texts)

    # -- prompts ------------------------------------------------------------------------------------------------------

    @property
    def _takes_videos(self) -> bool:
        return getattr(self.processor, "video_processor", None) is not None

    def _prompts(self, num_frames: int, questions: Sequence[str]) -> list[str]:
        clip = [{"type": "video"}] if self._takes_videos else [{"type": "image"}] * num_frames
        conversations = [
            [{"role": "user", "content": [*clip, {"type": "text", "text": f"{question} {INSTRUCTION}"}]}]
            for question in questions
        ]
        plain = {"enable_thinking": False} if "enable_thinking" in str(self.processor.chat_template) else {}
        return self.processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False, **plain)

    def _text_options(self, texts: Sequence[str]) -> dict[str, bool]:
        bos = self.processor.tokenizer.bos_token
        return {"add_special_tokens": not (bos and texts[0].startswith(bos))}

    def _inputs(self, frames: np.ndarray, fps: float, texts: Sequence[str]) -> dict[str, Any]:
        """The model's inputs for these prompts, each with the clip."""
        if self._takes_videos:
            count = len(frames)
            facts = [{"fps": fps, "total_num_frames": count, "frames_indices": list(range(count))} for _ in texts]
            media = {"videos": [frames] * len(texts), "video_metadata": facts, "do_sample_frames": False}
        else:
            media = {"images": [list(frames)] * len(texts)}
        inputs = self.processor(
            text=list(texts), **media, **self._text_options(texts), padding=True, padding_side="left",
            return_tensors="pt",
        )  # fmt: skip
        return dict(inputs.to(self.model.device, self.model.dtype))

    def _tails(self, inputs: dict[str, Any], texts: Sequence[str]) -> list[list[int]] | None:
        """The ids after the clip of every prompt; `inputs` are those of the first. None when they cannot be told.

        The processor only replaces placeholders, so what follows the last one is the same before and after.
        """
        config = self.model.config
        media = {getattr(config, f"{kind}_token_id", None) for kind in ("video", "image")} - {None}
        tails = []
        for ids in self.processor.tokenizer(list(texts), **self._text_options(texts))["input_ids"]:
            places = [place for place, token in enumerate(ids) if token in media]
            if not places:
                return None
            tails.append(ids[places[-1] + 1 :])
        whole = inputs["input_ids"][0].tolist()
        return tails if tails[0] == whole[len(whole) - len(tails[0]) :] else None

    # -- decoding -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _continue_prefix(self, frames: np.ndarray, fps: float, texts: Sequence[str]) -> list[str] | None:
        """Answers from one encoding of the clip; None when the model's cache cannot be shared."""
        from transformers.cache_utils import DynamicLayer

        inputs = self._inputs(frames, fps, texts[:1])
        tails = self._tails(inputs, texts)
        if tails is None:
            return None
        shape = inputs["input_ids"].shape
        start = shape[1] - len(tails[0])
        prefix = {k: v[:, :start] if getattr(v, "shape", ())[:2] == shape else v for k, v in inputs.items()}
        cache = self.model(**prefix, use_cache=True, logits_to_keep=1).past_key_values
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None
        shift = getattr(self.model.base_model, "rope_deltas", None)
        shift = 0 if shift is None else int(shift.flatten()[0])
        return self._decode(cache, start, tails, shift)

    def _decode(self, cache: Any, start: int, tails: list[list[int]], shift: int) -> list[str]:
        """Greedy answers. cache: of the prefix, one row of `start` tokens, used up. Rows that have ended leave."""
        device, count, longest = self.model.device, len(tails), max(map(len, tails))
        tokens = torch.zeros(count, longest, dtype=torch.long, device=device)
        mask = torch.ones(count, start + longest, dtype=torch.long, device=device)
        for row, tail in enumerate(tails):
            tokens[row, longest - len(tail) :] = torch.tensor(tail)
            mask[row, start : start + longest - len(tail)] = 0
        positions = (mask.cumsum(dim=1) - 1 + shift)[:, start:]
        cache.batch_repeat_interleave(count)
        answers: list[list[int]] = [[] for _ in tails]
        ended: set[int] = set()
        rows = list(range(count))
        for _ in range(self.max_new_tokens):
            logits = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen = logits.argmax(dim=-1).tolist()
            going = [place for place, token in enumerate(chosen) if token not in self._ends]
            ended |= {row for place, row in enumerate(rows) if chosen[place] in self._ends}
            if len(going) < len(rows):
                kept = torch.tensor(going, dtype=torch.long, device=device)
                mask, positions = mask[kept], positions[kept]
                rows = [rows[place] for place in going]
                if not rows:
                    break
                cache.batch_select_indices(kept)
            for place, row in zip(going, rows, strict=True):
                answers[row].append(chosen[place])
            tokens = torch.tensor([[chosen[place]] for place in going], device=device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [self._text(ids, row in ended) for row, ids in enumerate(answers)]

    @torch.inference_mode()
    def _generate(self, frames: np.ndarray, fps: float, texts: Sequence[str]) -> list[str]:
        """Answers from whole prompts in one batch."""
        inputs = self._inputs(frames, fps, texts)
        options = copy.deepcopy(self.model.generation_config)
        options.update(
            do_sample=False, temperature=None, top_p=None, top_k=None, repetition_penalty=None,
            max_new_tokens=self.max_new_tokens, eos_token_id=sorted(self._ends), pad_token_id=min(self._ends),
        )  # fmt: skip
        output = self.model.generate(**inputs, generation_config=options)
        answers = []
        for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
            length = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
            answers.append(self._text(ids[:length], length < len(ids)))
        return answers

    def _text(self, ids: list[int], ended: bool) -> str:
        """The answer; one that was cut off ends with its last whole sentence, if it has one."""
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        whole = None if ended else re.match(r".*[.!?](?=\s)", text, re.DOTALL)
        return whole[0] if whole else text
