"""Asking a model about videos.

    chat = VideoChat.from_pretrained(None, "runs/nz/adapter")
    chat.ask("clip.mp4", "Is <Nz> in this video?")

A prompt is `[video prefix | question | answer]`. The prefix (30 to 340 tokens) depends on the video only, so it is
read once and its key-value cache serves all questions of that video:

    cache      [ prefix of the row's video | question, right-padded | answer so far ]
    positions    0 ............... P-1       P ... P+l-1              P+l ...

Greedy decoding of a batch gives the answers of `model.generate` one by one.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .base_model import load_base
from .errors import MissingBackendError, PVChatError, no_model
from .hub import subject_folder
from .modeling_pvchat import PVChatProcessor

EMBEDDED_BASE = Path(__file__).parent / "assets" / "pvchat-cartoon"
MAX_NEW_TOKENS = 96  # an answer of the datasets has 5 to 50 tokens
VIDEOS_AT_ONCE = 8  # encoded together
ROWS_AT_ONCE = 64  # questions decoded together; at 7B a row's cache takes about 50 MB in bfloat16

Video = str | os.PathLike | np.ndarray  # a file, or frames (T, H, W, 3) uint8


class Reply(NamedTuple):
    """An answer, and `log p("Yes") - log p("No")` for its first token."""

    text: str
    margin: float


class Piece(NamedTuple):
    """A piece of an answer while it is written.

    text: what is new. prompt_tokens, new_tokens: read, and written so far. finish: in the last piece, "stop" when the
    model ended its answer and "length" when the limit did; before, None.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finish: str | None


class VideoChat:
    """A model, its processor, and the person it knows.

    Args:
        model: a `PVChatForConditionalGeneration`, or a `PeftModel` of one.
        processor: its `PVChatProcessor`.
        subject: the name as it stands in questions and answers, such as `<Nz>`; `None` for a base that knows nobody.
            In a question, the bare `Nz` as a word of its own is understood as well.
    """

    def __init__(self, model, processor: PVChatProcessor, subject: str | None = None):
        self.model = model.eval()
        self.processor = processor
        self.subject = subject
        self._net = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._prefix = processor.encode_prefix()
        self._yes, self._no = (self._first_token(word) for word in ("Yes", "No"))

    @classmethod
    def from_pretrained(cls, base: str | Path | None = None, adapter: str | Path | None = None) -> VideoChat:
        """Loads a base, and a subject's adapter on it.

        Args:
            base: a checkpoint folder or a name on the Hub; `None` for the base of an adapter that was trained on one
                of the Hub's, else for the small model that comes with the package.
            adapter: the adapter folder of a run, or a name on the Hub.

        Raises:
            PVChatError: there is no such model, or the adapter does not fit it.
            MissingBackendError: the model's weights are in 4 bits and bitsandbytes is not installed.
        """
        record = revision = None
        if adapter is not None:
            load_subject_adapter, records = _adapter_tools()
            adapter = subject_folder(adapter)
            record = records.read(adapter)
            if base is None and "/" in record.base["id"]:
                base, revision = record.base["id"], record.base.get("revision")
        base = EMBEDDED_BASE if base is None else base
        model, processor = load_base(base, revision)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        if record is None:
            return cls(model, processor)
        return cls(load_subject_adapter(model, adapter), processor, record.subject)

    def ask(self, video: Video, question: str, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """One answer about one video.

        Raises:
            PVChatError: the video cannot be read, or the question is empty, too long, or holds a control token.
        """
        return self.ask_many([video], [[question]], max_new_tokens)[0][0]

    def ask_many(
        self, videos: Sequence[Video], questions: Sequence[Sequence[str]], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[list[str]]:
        """Answers about many videos, each with its own questions; raises as `ask` does."""
        return [[reply.text for reply in replies] for replies in self.replies(videos, questions, max_new_tokens)]

    def yes_no_margin(self, video: Video, questions: Sequence[str]) -> list[float]:
        """`log p("Yes") - log p("No")` for the first token of each answer; raises as `ask` does."""
        return [reply.margin for reply in self.replies([video], [questions], max_new_tokens=0)[0]]

    def conversation(self, video: Video) -> Conversation:
        """Reads the video once, for questions that come one after the other; raises as `ask` does for videos."""
        return Conversation(self, self._read(self._pixels([video])))

    def replies(
        self, videos: Sequence[Video], questions: Sequence[Sequence[str]], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[list[Reply]]:
        """Answers with their margins; no text if `max_new_tokens` is 0. Raises as `ask` does."""
        if len(videos) != len(questions):
            raise PVChatError(f"Give one list of questions per video, got {len(questions)} for {len(videos)} videos.")
        encoded = [[self._encode(question) for question in asked] for asked in questions]
        results: list[list[Reply]] = [[] for _ in videos]
        asked = [video for video, own in enumerate(encoded) if own]
        groups = [asked[start : start + VIDEOS_AT_ONCE] for start in range(0, len(asked), VIDEOS_AT_ONCE)]
        loaded = _one_ahead(self._pixels, ([videos[video] for video in group] for group in groups))
        for group, pixels in zip(groups, loaded, strict=True):
            rows = [(place, ids) for place, video in enumerate(group) for ids in encoded[video]]
            cache = self._read(pixels)
            for first in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[first : first + ROWS_AT_ONCE]
                for (place, _), reply in zip(some, self._reply(cache, some, max_new_tokens), strict=True):
                    results[group[place]].append(reply)
        return results

    @contextmanager
    def answering_with(self, adapter: str | Path | None) -> Iterator[VideoChat]:
        """Inside, another subject's adapter answers under this subject's name; with `None`, the base alone does.

        Raises:
            PVChatError: this model has no adapter, or the other one does not fit the base.
        """
        if not hasattr(self.model, "disable_adapter"):
            raise PVChatError("This model has no adapter to replace; load one with VideoChat.from_pretrained.")
        if adapter is None:
            with self.model.disable_adapter():
                yield self
            return
        own, other = self.model.active_adapter, "other"
        _adapter_tools()[0](self.model, adapter, other)
        try:
            self.model.eval()
            yield self
        finally:
            self.model.set_adapter(own)
            self.model.delete_adapter(other)

    # -- text ---------------------------------------------------------------------------------------------------------

    def _first_token(self, word: str) -> int:
        ids, asked = self.processor.encode_qa("?", word)
        return ids[asked]

    def _encode(self, question: str) -> list[int]:
        if not question.strip():
            raise PVChatError('The question is empty; ask something, for example "What is happening in the video?".')
        if self.subject is not None:
            bare = re.escape(self.subject.strip("<>"))
            question = re.sub(rf"(?<![\w<]){bare}(?![\w>])", lambda _: self.subject, question)
        try:
            ids = self.processor.encode_question(question, self.subject)
        except ValueError as error:
            raise PVChatError(f"{error} Leave it out of the question.") from error
        room = self._context - len(self._prefix) - 1
        if len(ids) > room:
            raise PVChatError(f"The question has {len(ids)} tokens, but {room} fit beside the video; shorten it.")
        return ids

    @property
    def _context(self) -> int:
        return self._net.config.text_config.max_position_embeddings

    # -- model --------------------------------------------------------------------------------------------------------

    def _pixels(self, videos: Sequence[Video]) -> torch.Tensor:
        """(V, N, T, C, H, W) of V videos, whose files are decoded at the same time."""

        def one(video: Video) -> torch.Tensor:
            try:
                return self.processor.video_processor(videos=[video], return_tensors="pt")["pixel_values_videos"]
            except ValueError as error:
                raise PVChatError(str(error)) from error

        with ThreadPoolExecutor(len(videos)) as pool:
            return torch.cat(list(pool.map(one, videos)))

    @torch.inference_mode()
    def _read(self, pixels: torch.Tensor):
        """Reads the prefixes of V videos and returns their key-value cache of V rows."""
        ids = torch.tensor([self._prefix] * len(pixels), device=self._net.device)
        return self._net(
            input_ids=ids, pixel_values_videos=pixels.to(self._net.device), use_cache=True, logits_to_keep=1
        ).past_key_values

    @torch.inference_mode()
    def _reply(self, cache, rows: Sequence[tuple[int, list[int]]], max_new_tokens: int) -> list[Reply]:
        """Greedy answers to N questions, each a row of the cache (its video) and its token ids."""
        start = self._ask(cache, rows)
        margins = (start.logits[:, self._yes] - start.logits[:, self._no]).tolist()
        answers: list[list[int]] = [[] for _ in rows]
        for numbers, tokens in self._decode(start, max_new_tokens):
            for row, token in zip(numbers, tokens, strict=True):
                answers[row].append(token)
        texts = [self.processor.decode_answer(ids, self.subject) if ids else "" for ids in answers]
        return [Reply(text, margin) for text, margin in zip(texts, margins, strict=True)]

    def _ask(self, cache, rows: Sequence[tuple[int, list[int]]]) -> _Asked:
        """Reads N questions after the videos of their rows."""
        device, start = self._net.device, len(self._prefix)
        lengths = torch.tensor([len(ids) for _, ids in rows], device=device)
        longest = int(lengths.max())
        input_ids = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        for row, (_, ids) in enumerate(rows):
            input_ids[row, : len(ids)] = torch.tensor(ids)
        slots = torch.arange(longest, device=device)
        mask = torch.ones(len(rows), start + longest, dtype=torch.long, device=device)
        mask[:, start:] = slots < lengths[:, None]
        cache = _rows_of(cache, torch.tensor([video for video, _ in rows], device=device))
        hidden = self._net.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=start + slots.expand(len(rows), -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        last = hidden[torch.arange(len(rows), device=device), lengths - 1]  # (N, D)
        return _Asked(cache, mask, self._net.lm_head(last).float(), start + lengths)

    def _decode(self, asked: _Asked, max_new_tokens: int) -> Iterator[tuple[list[int], list[int]]]:
        """Greedy continuation, step by step: the rows that go on, and the token of each. Rows that have ended leave
        the batch; the last step has none unless the limit ended it. Who knows nobody names nobody."""
        end, name = self.processor.tokenizer.eos_token_id, self._net.config.subject_token_id
        cache, mask, logits, positions = asked
        max_new_tokens = min(max_new_tokens, self._context - mask.shape[1])
        rows = torch.arange(len(logits), device=logits.device)
        for step in range(max_new_tokens):
            if self.subject is None:
                logits[:, name] = -torch.inf
            tokens = logits.argmax(dim=-1)
            going = tokens != end
            if not going.all():
                rows, tokens, positions, mask = rows[going], tokens[going], positions[going], mask[going]
                cache.batch_select_indices(going.nonzero()[:, 0])
            yield rows.tolist(), tokens.tolist()
            if not len(rows) or step + 1 == max_new_tokens:
                break
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            logits = self._net(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=positions[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            positions = positions + 1


class _Asked(NamedTuple):
    """Questions that were read: cache of N rows, its (N, L) mask, (N, vocabulary) logits of the first answer token in
    float32, and (N,) its position."""

    cache: Any
    mask: torch.Tensor
    logits: torch.Tensor
    positions: torch.Tensor


class Conversation:
    """Questions about one video, which was read once. Made by `VideoChat.conversation`.

    Each question is answered on its own: the model was trained on single questions and does not see earlier ones.
    """

    def __init__(self, chat: VideoChat, cache: Any):
        self._chat = chat
        self._cache = cache

    def ask(self, question: str, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """Raises PVChatError as `VideoChat.ask` does."""
        return self.reply(question, max_new_tokens).text

    def reply(self, question: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Reply:
        """The answer with its margin; raises as `ask` does."""
        return self._chat._reply(self._cache, [(0, self._chat._encode(question))], max_new_tokens)[0]

    @torch.inference_mode()
    def stream(self, question: str, max_new_tokens: int = MAX_NEW_TOKENS) -> Iterator[Piece]:
        """The answer of `ask` in pieces, while it is written; raises as `ask` does."""
        chat = self._chat
        asked = chat._ask(self._cache, [(0, chat._encode(question))])
        prompt, ids, shown, finish = asked.mask.shape[1], [], "", "length"
        for _, tokens in chat._decode(asked, max_new_tokens):
            if not tokens:
                finish = "stop"
                break
            ids += tokens
            text = chat.processor.decode_answer(ids, chat.subject)
            if len(text) > len(shown) and text.startswith(shown) and not text.endswith("\ufffd"):  # half a character
                yield Piece(text[len(shown) :], prompt, len(ids), None)
                shown = text
        text = chat.processor.decode_answer(ids, chat.subject)
        yield Piece(text[len(shown) :], prompt, len(ids), finish)


class VLMWriter:
    """Role QAWriter of the dataset builder: the base, which knows nobody, says what a clip shows.

    Args:
        base: a checkpoint folder or a name on the Hub; loaded at the first clip.

    Raises:
        PVChatError: there is no such model.
    """

    def __init__(self, base: str | Path = EMBEDDED_BASE):
        from .dataset_builder.backends.common import model_revision, weights_id

        try:
            revision = model_revision(base)
        except OSError as error:
            raise no_model(base, error) from error
        self.base = base
        self.id = f"vlm@2:{weights_id(base, revision)}"

    @cached_property
    def chat(self) -> VideoChat:
        return VideoChat.from_pretrained(self.base)

    def write(self, video: Path, questions: Sequence[str]) -> list[str]:
        """One answer per question, in order. The questions speak of "the person"."""
        return self.chat.ask_many([video], [questions])[0]


def _one_ahead(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`function` of each item, in order; the next one is computed in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for item in items:
            done, coming = coming, pool.submit(function, item)
            if done is not None:
                yield done.result()
        if coming is not None:
            yield coming.result()


def _rows_of(cache, rows: torch.Tensor):
    """A cache of these rows of another one, which stays as it is; its tensors are copied once."""
    picked = copy.copy(cache)
    picked.layers = [copy.copy(layer) for layer in cache.layers]
    picked.batch_select_indices(rows)
    return picked


def _adapter_tools():
    try:
        from .trainers.adapter import SubjectRecord, load_subject_adapter
    except ImportError as error:
        raise MissingBackendError("Adapters need PEFT: pip install 'pvchat[train]'.") from error
    return load_subject_adapter, SubjectRecord
