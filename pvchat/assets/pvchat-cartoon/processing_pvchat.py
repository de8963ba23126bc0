"""Prompt building and the processor: the only place that knows placeholders, segments and the name token.

A prompt of one video with N tiles, as in the reference (every segment is tokenised on its own and opens with `<s>`):

    <s>[INST] <Video>{slots}<s></Video><Video>{slots} ... <s></Video>[/INST] [INST][<sks>]{question}[/INST]{answer}</s>
    |------------------------- prefix: depends on the video only -----------| |---------- question ------|

`<sks>` stands for the subject's name everywhere; `subject_name` is replaced by it on the way in and restored on the
way out, so that the name itself is known to the prompt and the adapter only.
"""

import numpy as np
import torch
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import VideoProcessorMixin

from .video_processing_pvchat import PVChatVideoProcessor, list_videos

VIDEO_TOKEN = "<video>"
SUBJECT_TOKEN = "<sks>"
OPEN_VIDEO, CLOSE_VIDEO = "<Video>", "</Video>"
OPEN_TURN, CLOSE_TURN = "[INST]", "[/INST]"
PROMPT_TOKENS = (VIDEO_TOKEN, SUBJECT_TOKEN, OPEN_TURN, CLOSE_TURN)

CHAT_TEMPLATE = (
    "{% set ns = namespace(first=true) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{% set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string "
    "else message['content'] %}"
    "{% for part in parts if part['type'] == 'video' %}"
    "{{ bos_token + '[INST] <Video><video>' + bos_token + '</Video>[/INST] ' }}{% set ns.first = false %}"
    "{% endfor %}"
    "{% if ns.first %}{{ bos_token }}{% set ns.first = false %}{% endif %}"
    "{{ '[INST]' }}{% if subject is defined and subject %}{{ '[<sks>]' }}{% endif %}"
    "{% for part in parts if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{{ '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% generation %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ eos_token }}"
    "{% endgeneration %}"
    "{% endif %}"
    "{% endfor %}"
)


class PVChatProcessor(ProcessorMixin):
    r"""Video processor and tokenizer in one.

    Args:
        video_processor: a `PVChatVideoProcessor`.
        tokenizer: a fast tokenizer that knows `<video>`, `<sks>`, `[INST]` and `[/INST]` as single tokens.
        num_tiles, tokens_per_tile: views of a video and placeholders of each, as in the model's config.

    Raises:
        ValueError: the tokenizer lacks one of these tokens, or the video processor makes another number of tiles.
    """

    def __init__(
        self,
        video_processor,
        tokenizer,
        num_tiles: int = 3,
        tokens_per_tile: int = 112,
        chat_template: str | None = CHAT_TEMPLATE,
    ):
        super().__init__(video_processor, tokenizer, chat_template=chat_template)
        lacking = [token for token in PROMPT_TOKENS if token not in tokenizer.get_vocab()]
        if lacking:
            raise ValueError(f"The tokenizer lacks {', '.join(lacking)}: add them as special tokens.")
        if video_processor.num_tiles != num_tiles:
            raise ValueError(f"num_tiles is {num_tiles}, but the video processor makes {video_processor.num_tiles}.")
        self.num_tiles = num_tiles
        self.tokens_per_tile = tokens_per_tile
        self.video_token = VIDEO_TOKEN
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)

    def check_argument_for_proper_class(self, argument_name, argument):
        # The base class looks the video processor up in a table that needs torchvision.
        if argument_name == "video_processor":
            if not isinstance(argument, VideoProcessorMixin):
                raise TypeError(f"video_processor must be a video processor, got {type(argument).__name__}.")
            return VideoProcessorMixin
        return super().check_argument_for_proper_class(argument_name, argument)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        # The base class loses paths that are not strings and lists of paths that are nested.
        videos = None if videos is None else list_videos(videos)
        return super().prepare_inputs_layout(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def replace_video_token(self, video_inputs, video_idx: int, **kwargs) -> str:
        """The text that one `<video>` becomes: the slots of every tile."""
        return f"{self.tokenizer.bos_token}{CLOSE_VIDEO}{OPEN_VIDEO}".join(
            [VIDEO_TOKEN * self.tokens_per_tile] * self.num_tiles
        )

    # -- prompts as token ids -----------------------------------------------------------------------------------------

    def encode_prefix(self) -> list[int]:
        """Ids of everything that depends on the video only: up to and including the first `[/INST]`."""
        slots = [self.video_token_id] * self.tokens_per_tile
        ids = self._segment(f"{OPEN_TURN} {OPEN_VIDEO}") + slots
        for _ in range(self.num_tiles - 1):
            ids += self._segment(f"{CLOSE_VIDEO}{OPEN_VIDEO}") + slots
        return ids + self._segment(f"{CLOSE_VIDEO}{CLOSE_TURN}")

    def encode_question(self, question: str, subject_name: str | None = None) -> list[int]:
        """Ids of `" [INST][<sks>]{question}[/INST]"`, ready to be answered; no bracket without a subject.

        Raises:
            ValueError: the question contains a control token such as `[INST]`.
        """
        return self._turn(question, "", subject_name)

    def encode_qa(self, question: str, answer: str, subject_name: str | None = None) -> tuple[list[int], int]:
        """Ids of question, answer and `</s>`, and how many of them belong to the question.

        Raises:
            ValueError: question or answer contains a control token.
        """
        ids = self._turn(question, answer, subject_name) + [self.tokenizer.eos_token_id]
        close = self.tokenizer.convert_tokens_to_ids(CLOSE_TURN)
        return ids, len(ids) - ids[::-1].index(close)

    def decode_answer(self, ids, subject_name: str | None = None) -> str:
        """Generated ids to text, with the subject's name restored."""
        ids = [int(i) for i in (ids.tolist() if isinstance(ids, (torch.Tensor, np.ndarray)) else ids)]
        if self.tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_token_id)]
        dropped = {self.tokenizer.bos_token_id, self.tokenizer.pad_token_id}
        text = self.tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False)
        return text.replace(SUBJECT_TOKEN, subject_name or SUBJECT_TOKEN).strip()

    def _segment(self, text: str) -> list[int]:
        return [self.tokenizer.bos_token_id, *self.tokenizer.encode(text, add_special_tokens=False)]

    def _turn(self, question: str, answer: str, subject_name: str | None) -> list[int]:
        bracket = ""
        if subject_name is not None:
            bracket = f"[{SUBJECT_TOKEN}]"
            question = question.replace(subject_name, SUBJECT_TOKEN)
            answer = answer.replace(subject_name, SUBJECT_TOKEN)
        control_tokens = (VIDEO_TOKEN, OPEN_TURN, CLOSE_TURN, self.tokenizer.bos_token, self.tokenizer.eos_token)
        for text in (question, answer):
            for token in control_tokens:
                if token in text:
                    raise ValueError(f"{token} is a control token of the prompt and may not be part of {text!r}.")
        # Tokenised together with what stands before it, as the reference does, then cut after the first [/INST].
        opening = f"{CLOSE_VIDEO}{CLOSE_TURN}"
        text = f"{opening} {OPEN_TURN}{bracket}{question}{CLOSE_TURN}{answer}"
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return ids[ids.index(self.tokenizer.convert_tokens_to_ids(CLOSE_TURN)) + 1 :]


__all__ = ["PVChatProcessor", "PVChatVideoProcessor"]
