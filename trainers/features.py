"""States of the frozen part of the video encoder, computed once per clip and read back in every epoch.

A cached tensor is a safetensors file named by the clip's hash, in a folder named by what else decides its content: the
encoder's weights, how many blocks ran, first frame or whole clip, and the video processor's settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from .adapter import weights_hash

NAME = "vision_hidden_states"


class FeatureCache:
    """Encoder states of clips, on disk.

    Args:
        model: a `PVChatModel` (the inner model, without head).
        processor: its `PVChatProcessor`.
        folder: where the files go.
        layers_done: encoder blocks to run; the model runs the others in every step.
        still: first frame only.
    """

    def __init__(self, model, processor, folder: Path, layers_done: int, still: bool):
        self.model = model
        self.processor = processor
        self.layers_done = layers_done
        self.still = still
        tower = model.vision_tower
        weights = {f"embeddings.{name}": p for name, p in tower.embeddings.named_parameters()}
        for index in range(layers_done):
            weights |= {f"layers.{index}.{name}": p for name, p in tower.layers[index].named_parameters()}
        key = {
            "weights": weights_hash(weights),
            "layers": layers_done,
            "still": still,
            "video_processor": json.loads(processor.video_processor.to_json_string()),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder) / digest

    def fill(self, rows: Sequence[dict[str, Any]], batch_size: int = 8, progress: bool = False) -> FeatureCache:
        """Encodes the clips that are missing, `batch_size` at a time. Each file appears whole or not at all.

        The files of a batch are read at the same time, and while the batch before it is encoded.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = list({row["sha256"]: row for row in rows if not self._path(row["sha256"]).exists()}.values())
        device = self.model.vision_layernorm.weight.device
        training = self.model.training
        self.model.eval()
        bar = tqdm(total=len(missing), desc="encode clips", unit="clip", disable=not progress)
        with bar, ThreadPoolExecutor(batch_size) as readers:
            coming = [readers.submit(self._pixels, row["path"]) for row in missing[:batch_size]]
            for start in range(0, len(missing), batch_size):
                batch, following = (missing[i : i + batch_size] for i in (start, start + batch_size))
                pixels = torch.cat([future.result() for future in coming])
                coming = [readers.submit(self._pixels, row["path"]) for row in following]
                # blocks that train in stage 2 are float32 copies in a bfloat16 base
                mixed = torch.autocast(device.type, self.model.dtype, enabled=self.model.dtype != torch.float32)
                with torch.no_grad(), mixed:
                    states = self.model.encode_video(pixels.to(device), num_layers=self.layers_done)
                for row, state in zip(batch, states.cpu(), strict=True):
                    path = self._path(row["sha256"])
                    temporary = path.with_suffix(f".{os.getpid()}.tmp")
                    save_file({NAME: state.contiguous()}, temporary)
                    os.replace(temporary, path)
                bar.update(len(batch))
        self.model.train(training)
        return self

    def get(self, sha256: str) -> torch.Tensor:
        """(N, S, D) states of a clip."""
        with safe_open(self._path(sha256), "pt") as file:
            return file.get_tensor(NAME)

    def _pixels(self, path: str) -> torch.Tensor:
        """(1, N, T, 3, H, W) of a clip."""
        videos = self.processor.video_processor(videos=[path], return_tensors="pt", still=self.still)
        return videos["pixel_values_videos"]

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256[:32]}.safetensors"
