"""Other video models as baselines, each with its own chat format. They are shown the reference clip in the prompt.

    ChatModel        any AutoModelForImageTextToText with a chat template: Qwen3-VL, VideoLLaMA3, InternVL, ...
    InternVideo2     InternVideo2-Chat, by the remote code of its repository
    VideoLLaMA2      by its own package, videollama2

A model that reads several videos per prompt gets the reference clip as a first video, with a sentence that names the
person. One that reads a single video gets both joined in time, the reference clip first, at the cost of half the
frames of each; the question says which half is which. (The paper's baselines saw the reference clip only as their own
earlier answer about it.)

Like `VideoChat`, a baseline has `subject`, `replies`, and `answering_with(None)`: inside, no reference clip is shown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dataset_builder.backends.vlm import ChatWriter, InternVideo2Writer
from ..dataset_builder.backends.vlm.writer import FRAMES, QUESTIONS_AT_ONCE
from ..dataset_builder.video_io import read_video, write_video
from ..errors import MissingBackendError, PVChatError, first_line
from ..session import MAX_NEW_TOKENS, Reply, Video

INTRODUCTION = "This video shows {name}."
NOW = "Now look at this second video."
JOINED = "The first half of this video shows {name}. Answer about the second half only. "
JOINED_FPS = 8.0
INSTRUCTION = "Answer in one or two short sentences. If asked whether someone is in the video, begin with Yes or No."


class Baseline:
    """What the baselines share.

    Args:
        name: for the id; changes when the weights do.
        subject: the person's name, as in the questions.
        reference: the clip that shows them.
    """

    def __init__(self, name: str, subject: str, reference: Video):
        self.id = name
        self.subject = subject
        self._reference: Video | None = reference

    @contextmanager
    def answering_with(self, adapter: None) -> Iterator[Baseline]:
        """Inside, no reference clip is shown.

        Raises:
            PVChatError: an adapter is given; a baseline has none.
        """
        if adapter is not None:
            raise PVChatError("A baseline has no adapter to replace; leave --wrong out.")
        shown, self._reference = self._reference, None
        try:
            yield self
        finally:
            self._reference = shown

    def replies(self, videos: Sequence[Video], questions: Sequence[Sequence[str]]) -> list[list[Reply]]:
        """Answers about videos, each with its own questions; the margin is None where a model does not give it.

        Raises:
            PVChatError: a video cannot be read.
        """
        return [
            self._answer(frames_of(video), asked) if asked else []
            for video, asked in zip(videos, questions, strict=True)
        ]

    def _answer(self, frames: tuple[np.ndarray, float], questions: Sequence[str]) -> list[Reply]:
        raise NotImplementedError


class ChatModel(Baseline):
    """Any image-text-to-text model with a chat template; a clip is encoded once for all its questions where the
    model's cache allows it, see `ChatWriter`.

    Args:
        model, processor: an `AutoModelForImageTextToText` and its processor.
    """

    def __init__(self, model: Any, processor: Any, name: str, subject: str, reference: Video):
        super().__init__(name, subject, reference)
        self._writer = _TwoVideoWriter(lambda: (model, processor), name, max_new_tokens=MAX_NEW_TOKENS)
        tokenizer = processor.tokenizer
        self._words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No")]

    @classmethod
    def from_pretrained(cls, name: str, subject: str, reference: Video) -> ChatModel:
        """Loads from a folder or the Hub. Raises MissingBackendError: not there, or a package is missing."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from ..dataset_builder.backends.common import model_revision, weights_id

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        processor = _load(AutoProcessor.from_pretrained, name)
        if not getattr(processor, "chat_template", None):
            raise PVChatError(f"{name} has no chat template; only chat models can be baselines.")
        model = _load(AutoModelForImageTextToText.from_pretrained, name, dtype=dtype).to(device)
        return cls(model, processor, weights_id(name, _load(model_revision, name)), subject, reference)

    def _answer(self, frames: tuple[np.ndarray, float], questions: Sequence[str]) -> list[Reply]:
        self._writer.introduction = None
        if self._reference is not None:
            self._writer.introduction = frames_of(self._reference)[0], INTRODUCTION.format(name=self.subject)
        replies: list[Reply] = []
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            texts, logits = self._writer.answers(*frames, questions[start : start + QUESTIONS_AT_ONCE])
            yes, no = (torch.log_softmax(logits.float(), dim=-1)[:, word] for word in self._words)
            replies += [Reply(*pair) for pair in zip(texts, (yes - no).tolist(), strict=True)]
        return replies


class _TwoVideoWriter(ChatWriter):
    """A `ChatWriter` whose prompts may open with another video and a sentence about it, and that keeps the logits of
    the first answer token."""

    introduction: tuple[np.ndarray, str] | None = None

    def answers(self, frames: np.ndarray, fps: float, questions: Sequence[str]) -> tuple[list[str], torch.Tensor]:
        """N texts, and (N, vocabulary) logits of the first token of each."""
        texts = self._answer(frames, fps, questions)
        return texts, self._first

    def _decode(self, *args: Any) -> list[str]:
        with self._keeping_first():
            return super()._decode(*args)

    def _generate(self, *args: Any) -> list[str]:
        with self._keeping_first():
            return super()._generate(*args)

    @contextmanager
    def _keeping_first(self) -> Iterator[None]:
        kept: list[torch.Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            if not kept:
                kept.append(output.logits[:, -1])

        hook = self.model.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()
        self._first = kept[0]

    def _prompts(self, num_frames: int, questions: Sequence[str]) -> list[str]:
        before: list[dict[str, str]] = []
        if self.introduction is not None:
            shown, sentence = self.introduction
            before = [*self._media(len(shown)), {"type": "text", "text": f"{sentence} {NOW}"}]
        conversations = [
            [{"role": "user", "content": [*before, *self._media(num_frames), {"type": "text", "text": text}]}]
            for text in (f"{question} {INSTRUCTION}" for question in questions)
        ]
        plain = {"enable_thinking": False} if "enable_thinking" in str(self.processor.chat_template) else {}
        return self.processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False, **plain)

    def _media(self, num_frames: int) -> list[dict[str, str]]:
        return [{"type": "video"}] if self._takes_videos else [{"type": "image"}] * num_frames

    def _inputs(self, frames: np.ndarray, fps: float, texts: Sequence[str]) -> dict[str, Any]:
        clips = [frames] if self.introduction is None else [self.introduction[0], frames]
        if self._takes_videos:
            facts = [
                {"fps": fps, "total_num_frames": len(clip), "frames_indices": list(range(len(clip)))} for clip in clips
            ]
            media: dict[str, Any] = {
                "videos": clips * len(texts), "video_metadata": facts * len(texts), "do_sample_frames": False,
            }  # fmt: skip
        else:
            media = {"images": [[frame for clip in clips for frame in clip]] * len(texts)}
        inputs = self.processor(
            text=list(texts), **media, **self._text_options(texts), padding=True, padding_side="left",
            return_tensors="pt",
        )  # fmt: skip
        return dict(inputs.to(self.model.device, self.model.dtype))


class OneVideoModel(Baseline):
    """A model that reads one video file per prompt: the reference clip and the clip are joined in time.

    Args:
        write: from a video file and questions to answers, one per question.
    """

    def __init__(self, write: Callable[[Path, Sequence[str]], list[str]], name: str, subject: str, reference: Video):
        super().__init__(name, subject, reference)
        self._write = write

    def _answer(self, frames: tuple[np.ndarray, float], questions: Sequence[str]) -> list[Reply]:
        clip, _ = frames
        asked = [f"{question} {INSTRUCTION}" for question in questions]
        if self._reference is not None:
            clip = joined(frames_of(self._reference)[0], clip)
            asked = [JOINED.format(name=self.subject) + question for question in asked]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            write_video(path, even(clip), JOINED_FPS)
            return [Reply(text, None) for text in self._write(path, asked)]


def internvideo2(name: str, subject: str, reference: Video) -> OneVideoModel:
    """InternVideo2-Chat-HD by its remote code; raises MissingBackendError as `InternVideo2Writer.from_pretrained`."""
    writer = InternVideo2Writer.from_pretrained(name)
    return OneVideoModel(writer.write, writer.id, subject, reference)


def videollama2(name: str, subject: str, reference: Video) -> OneVideoModel:
    """VideoLLaMA2 by its own package (calls as in its README: `model_init`, `mm_infer`).

    Raises:
        MissingBackendError: the package or the weights are not here.
    """
    try:
        from videollama2 import mm_infer, model_init
    except ImportError as error:
        raise MissingBackendError(
            f"{name} needs its own package ({error}): pip install git+https://github.com/DAMO-NLP-SG/VideoLLaMA2"
        ) from error
    model, processor, tokenizer = _load(model_init, name)

    def write(video: Path, questions: Sequence[str]) -> list[str]:
        pixels = processor["video"](str(video))
        return [
            mm_infer(pixels, question, model=model, tokenizer=tokenizer, do_sample=False, modal="video").strip()
            for question in questions
        ]

    return OneVideoModel(write, f"videollama2:{Path(name).name}", subject, reference)


# Part of a model's name, in lower case, and what loads such a model; any other is a ChatModel.
FORMATS = (("internvideo2", internvideo2), ("videollama2", videollama2))


def load_baseline(name: str, subject: str, reference: Video) -> Baseline:
    """The baseline for a folder or a name on the Hub. Raises MissingBackendError when it cannot be loaded here."""
    plain = Path(name).name.lower().replace("_", "").replace("-", "")
    for part, load in FORMATS:
        if part in plain:
            return load(name, subject, reference)
    return ChatModel.from_pretrained(name, subject, reference)


def _load(load: Callable[..., Any], name: str, **options: Any) -> Any:
    try:
        return load(name, **options)
    except ImportError as error:
        needed = next(
            (package for package in ("torchvision", "timm", "einops") if package in str(error).lower()), None
        )
        advice = f"pip install {needed}" if needed else "install what it names"
        raise MissingBackendError(
            f"{name} needs a package that is missing ({first_line(error)}); {advice}."
        ) from error
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise MissingBackendError(
            f"{name} cannot be loaded as a chat model for videos ({first_line(error)}); pass a folder with the model, "
            f"or let this computer reach the Hub."
        ) from error


# -- frames -----------------------------------------------------------------------------------------------------------


def frames_of(video: Video) -> tuple[np.ndarray, float]:
    """Up to FRAMES evenly spaced frames (T, H, W, 3) uint8, and their rate in frames per second.

    Raises:
        PVChatError: the file cannot be read.
    """
    if not isinstance(video, np.ndarray):
        return read_video(video, max_frames=FRAMES)
    picked = np.linspace(0, len(video) - 1, min(FRAMES, len(video))).round().astype(int)
    return video[picked], JOINED_FPS


def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two clips, one after the other and equally long, in the size of the second: (2 T, H, W, 3) uint8."""
    from PIL import Image

    height, width = second.shape[1:3]
    resized = np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in first])
    length = max(len(first), len(second))
    index = [np.linspace(0, len(clip) - 1, length).round().astype(int) for clip in (resized, second)]
    return np.concatenate([resized[index[0]], second[index[1]]])


def even(frames: np.ndarray) -> np.ndarray:
    """The frames without an odd last row or column, which mp4 cannot hold, and at least two of them."""
    height, width = (side - side % 2 for side in frames.shape[1:3])
    frames = frames[:, :height, :width]
    return frames if len(frames) > 1 else np.repeat(frames, 2, axis=0)
