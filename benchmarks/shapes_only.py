"""Models of any size without their data: what a step computes and holds can be counted, not what comes out of it.

Tensors have shape, type and storage size, and no content. The real model, adapter, collator and trainer run on them,
under bfloat16 autocast as on a GPU. What differs from a GPU: attention with dropout (inside the Q-Former) is done in
separate steps that keep its weights, as no fused kernel of the processor has dropout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .cost_setup import make_model


class ShapesOnly:
    """A model without data that can learn a subject (see `make_model`), and what its trainers need.

    Inside `mode` new tensors have no data either.
    """

    def __init__(self, size: str, profile: str, num_vision_layers: int = 0, dtype: torch.dtype = torch.bfloat16):
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.dtype = dtype
        with torch.device("meta"):
            self.model = make_model(size, profile, num_vision_layers, dtype=dtype)
        self._forget_data(self.model)
        inner = self.model.get_base_model().model
        placeholder = inner.config.video_token_id
        # The model's own check of the number of placeholders reads ids.
        inner.get_placeholder_mask = lambda ids, embeds, _: (ids == placeholder)[..., None].expand_as(embeds)

    def _forget_data(self, model: nn.Module) -> None:
        """Parameters and buffers on the meta device -> tensors that call themselves processor tensors.

        Autocast passes over meta tensors; over these it does not.
        """
        new: dict[int, torch.Tensor] = {}
        old = []  # keeps the ids unique
        for module in model.modules():
            for name, value in (*module._parameters.items(), *module._buffers.items()):
                if value is None or not value.is_meta:
                    continue
                if id(value) not in new:
                    old.append(value)
                    tensor = FakeTensor(self.mode, value.detach(), torch.device("cpu"))
                    if isinstance(value, nn.Parameter):
                        with self.mode:
                            tensor = nn.Parameter(tensor, requires_grad=value.requires_grad)
                    new[id(value)] = tensor
                table = module._parameters if name in module._parameters else module._buffers
                table[name] = new[id(value)]

    def trainer(self, trainer_class, *args, **kwargs):
        """An instance of the trainer. It leaves the model where it is, and logs nothing: there are no values."""

        class ShapesOnlyTrainer(trainer_class):
            def _move_model_to_device(self, model, device):
                return model

            def _note(self, lm_loss, terms):
                pass

        trainer = ShapesOnlyTrainer(self.model, *args, **kwargs)
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    def features(self, layers_done: int | None = None) -> StoredShapes:
        """Stands in for a `FeatureCache` after `layers_done` encoder blocks (all by default)."""
        return StoredShapes(self.model.get_base_model().config, layers_done, self.dtype)

    def batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch without its data."""
        return {k: self.mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


class StoredShapes:
    """Encoder states of any clip, (N, S, D), without content."""

    def __init__(self, config, layers_done: int | None, dtype: torch.dtype):
        vision = config.vision_config
        frames, height, width = vision.grid
        self.layers_done = vision.num_hidden_layers if layers_done is None else layers_done
        self.states = torch.empty(config.num_tiles, 1 + frames * height * width, vision.hidden_size, dtype=dtype)

    def get(self, sha256: str) -> torch.Tensor:
        return self.states
