"""Role QAWriter by InternVideo2-Chat-8B-HD, the model that wrote the paper's answers, with its own remote code.

Its call: `chat(tokenizer, msg, prompt, media_type, media_tensor, chat_history, return_history, generation_config)`
with a tensor (1, tiles, frames, 3, 224, 224): a 2 x 1 grid of tiles and the whole frame, 8 frames (model card;
settings of the authors' video_qa_generation_all_video.py and get_age_gender.py, github.com/DavidYan2001/PVChat).

The remote code was written for transformers 4.38. Where it no longer runs, convert the weights once
(`modeling_pvchat.convert_pvchat`) and answer with `pvchat.session.VLMWriter`, which also batches the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ....errors import MissingBackendError, PVChatError, first_line
from ....modeling_pvchat.video_processing_pvchat import PVChatVideoProcessor
from ..common import LoadsOnce, best_device, load_weights, model_revision, weights_id

INTERNVIDEO2 = "OpenGVLab/InternVideo2_chat_8B_HD"
LICENCES = ("MIT", "Apache-2.0")  # InternVideo2-Chat; Mistral-7B-Instruct inside it
MAX_NEW_TOKENS = 200


class InternVideo2Writer(LoadsOnce):
    """load: gives the model, as loaded with `trust_remote_code=True`, and its tokenizer; called at the first clip.
    name: for the id."""

    licences = LICENCES

    def __init__(self, load: Callable[[], tuple[Any, Any]], name: str, size: int = 224):
        super().__init__(load)
        self.id = f"internvideo2@1:{name}"
        self._video_processor = PVChatVideoProcessor(
            size=size, num_frames=8, tile_grid=(2, 1), antialias=False, clamp=False
        )

    @classmethod
    def from_pretrained(cls, name: str = INTERNVIDEO2) -> InternVideo2Writer:
        """From a folder or the Hub. The code that lies there runs at the first clip.

        Raises MissingBackendError: not there, no access (ask for it on the pages of InternVideo2 and of
        mistralai/Mistral-7B-Instruct-v0.3), or, at the first clip, the code does not run with the installed packages.
        """
        from transformers import AutoModel, AutoTokenizer

        revision = load_weights(model_revision, name, "MIT")

        def load() -> tuple[Any, Any]:
            options = {"revision": revision, "trust_remote_code": True}
            try:
                tokenizer = load_weights(AutoTokenizer.from_pretrained, name, "MIT", **options)
                model = load_weights(AutoModel.from_pretrained, name, "MIT", dtype=torch.bfloat16, **options)
            except (AttributeError, TypeError, KeyError, RuntimeError) as error:
                raise MissingBackendError(
                    f"The remote code of {name} does not run with the installed transformers "
                    f"({type(error).__name__}: {first_line(error)}); convert the weights "
                    f"(pvchat.modeling_pvchat.convert_pvchat) and answer with pvchat.session.VLMWriter."
                ) from error
            return model.to(best_device()), tokenizer

        return cls(load, weights_id(name, revision))

    @property
    def model(self) -> Any:
        return self._loaded[0]

    @torch.inference_mode()
    def write(self, video: Path, questions: Sequence[str]) -> list[str]:
        """One answer per question, in order, each without a history. Raises PVChatError for an unreadable video."""
        try:
            pixels = self._video_processor(videos=[str(video)], return_tensors="pt")["pixel_values_videos"]
        except ValueError as error:
            raise PVChatError(str(error)) from error
        model, tokenizer = self._loaded
        pixels = pixels.to(model.device, model.dtype)
        with _encoding_once(model):
            return [
                model.chat(
                    tokenizer,
                    "",
                    question,
                    media_type="video",
                    media_tensor=pixels,
                    chat_history=[],
                    return_history=False,
                    generation_config={"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS},
                ).strip()
                for question in questions
            ]


@contextmanager
def _encoding_once(model: Any) -> Iterator[None]:
    """Inside, the model encodes its clip at the first question and remembers it for the others."""
    encode: Callable[..., Any] = model.encode_vision
    encoded: list[Any] = []

    def remembered(*args: Any, **kwargs: Any) -> Any:
        if not encoded:
            encoded.append(encode(*args, **kwargs))
        return encoded[0]

    model.encode_vision = remembered
    try:
        yield
    finally:
        del model.encode_vision
