"""One batch, several subjects: each row is answered by its own adapter.

PEFT can do this itself (`adapter_names=` of forward and generate) for models that see one row everywhere. Here a video
is several tiles, so that the Q-Former sees more rows than the language model, and routers return several tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from ..errors import PVChatError
from ..modeling_pvchat.modeling_qformer import PVChatHeadRouter

BASE = "__base__"  # PEFT's word for a row without an adapter


@contextmanager
def mixed_subjects(model: PeftModel, names: Sequence[str | None]) -> Iterator[None]:
    """Inside, row i of a batch, with its video, is answered by the adapter `names[i]`; `None` is the base alone.

    Holds for forward and for `generate` with any number of beams; the model must be in evaluation mode.

    Raises:
        PVChatError: an adapter that is not loaded, or one of the profile `paper`, which holds whole modules.
    """
    unknown = sorted({name for name in names if name is not None} - set(model.peft_config))
    if unknown:
        raise PVChatError(f"No adapter is called {', '.join(unknown)}; loaded are {', '.join(model.peft_config)}.")
    rows = [BASE if name is None else name for name in names]
    parts = [module for module in model.modules() if isinstance(module, LoraLayer | AuxiliaryTrainingWrapper)]
    routers = [part for part in parts if isinstance(getattr(part, "original_module", None), PVChatHeadRouter)]
    whole = [
        part for part in parts if isinstance(part, ModulesToSaveWrapper) and part not in routers
        and not isinstance(part.original_module, nn.Embedding)
    ]  # fmt: skip
    if whole:
        raise PVChatError("Only adapters of the profile 'light' can be mixed in a batch; ask the others one by one.")

    def name_rows(module, args, kwargs):
        return args, kwargs | {"adapter_names": _repeated(rows, args[0])}

    def route_rows(router, args, output):
        chosen = zip(_repeated(rows, args[0]), args[0].split(1), strict=True)
        found = [
            (router.modules_to_save[n] if n in router.modules_to_save else router.original_module)(x)
            for n, x in chosen
        ]
        return tuple(torch.cat(tensors) for tensors in zip(*found, strict=True))

    hooks = [p.register_forward_pre_hook(name_rows, with_kwargs=True) for p in parts if p not in routers]
    hooks += [router.register_forward_hook(route_rows) for router in routers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _repeated(rows: Sequence[str], x: torch.Tensor) -> list[str]:
    """A name for every row of `x`, which holds the tiles, or the beams, of one row after those of another."""
    times, rest = divmod(len(x), len(rows))
    if rest:
        raise PVChatError(f"The batch has {len(x)} rows, but {len(rows)} subjects were named; name one per row.")
    return [name for name in rows for _ in range(times)]
