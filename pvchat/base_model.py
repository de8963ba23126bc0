"""Loading a base: the model and its processor."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import MissingBackendError, first_line, no_model
from .modeling_pvchat import PVChatForConditionalGeneration, PVChatProcessor


def load_base(base: str | Path, revision: str | None = None) -> tuple[PVChatForConditionalGeneration, PVChatProcessor]:
    """The model, where transformers puts it (main memory, or a GPU for weights in 4 bits), and its processor.

    Weights are bfloat16 if there is a GPU to move them to, else float32.

    Args:
        base: a checkpoint folder or a name on the Hub. revision: of the latter.

    Raises:
        PVChatError: there is no such model.
        MissingBackendError: its weights are in 4 bits and bitsandbytes is not installed.
    """
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        processor = PVChatProcessor.from_pretrained(base, revision=revision)
        return PVChatForConditionalGeneration.from_pretrained(base, revision=revision, dtype=dtype), processor
    except ImportError as error:
        raise MissingBackendError(
            f"{base} needs a package that is missing ({first_line(error)}); for weights in 4 bits: "
            f"pip install 'pvchat[quant]'."
        ) from error
    except (OSError, ValueError) as error:
        raise no_model(base, error) from error
