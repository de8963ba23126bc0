"""Role FaceGallery as in the paper: the gallery pictures that CLIP finds most alike the subject's best still.

CLIP sees the whole picture (clothes, hair, pose, place) and tells looks apart, not people; it would offer a famous
subject their own photographs. So CLIP ranks, and the face embedder takes out the subject.

Encoder and the number of pictures (5) as in the authors' retrieval script (github.com/DavidYan2001/PVChat @ c1aa1ed,
clip-retrieval.py); unlike there, embeddings have length 1, so that bright pictures do not win by their norm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....errors import PVChatError
from ...engine import Rejected, hash_file, write_atomically, write_json
from ...protocols import FaceEmbedder, Match
from ..common import LoadsOnce, best_device, load_weights, model_revision, weights_id
from ..others import choose_others
from .source import Source, open_source

CLIP_MODEL = "openai/clip-vit-base-patch32"
INDEX_VERSION = 1
BATCH = 32  # pictures encoded together
FIRST_SAVE = 4096  # pictures after which a growing index is saved for the first time, then at every doubling
SCREENED = 64  # most alike pictures whose faces are compared with the subject, at least


class ClipEncoder(LoadsOnce):
    """Pictures -> embeddings of length 1.

    load: gives a `CLIPModel` and its picture processor; called at the first picture. name: for the id.
    """

    licences = ("MIT",)

    def __init__(self, load: Callable[[], tuple[Any, Any]], name: str = "clip"):
        super().__init__(load)
        self.id = f"clip@1:{name}"

    @classmethod
    def from_pretrained(cls, name: str = CLIP_MODEL) -> ClipEncoder:
        """From a folder or the Hub. Raises MissingBackendError when there is no such model; at the first picture, when
        it cannot be loaded."""
        from transformers import CLIPImageProcessorPil, CLIPModel

        revision = load_weights(model_revision, name, "MIT")

        def load() -> tuple[Any, Any]:
            model = load_weights(CLIPModel.from_pretrained, name, "MIT", revision=revision)
            # The PIL processor, not the one of torchvision: the same vectors on every computer.
            processor = load_weights(CLIPImageProcessorPil.from_pretrained, name, "MIT", revision=revision)
            return model.to(best_device()), processor

        return cls(load, weights_id(name, revision))

    @torch.inference_mode()
    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """N pictures (H, W, 3) uint8 of any sizes -> (N, D) float32 of length 1."""
        model, processor = self._loaded
        pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        features = model.get_image_features(pixel_values=pixels.to(model.device)).pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


class ClipIndex:
    """CLIP embeddings of a source, kept in `folder` as clip-index.safetensors and clip-index.json.

    An entry whose stamp is unchanged is not read again, one whose content is known is not encoded again. Both files
    are written under another name and renamed, the json last: it holds the sha256 of the other, so a half-written
    index is not used. entries: the json's list, row by row; skipped: entry -> why it could not be read.
    """

    def __init__(self, source: Source, folder: str | Path, encoder: ClipEncoder):
        self.folder = Path(folder)
        self.skipped: dict[str, str] = {}
        self._encoder = encoder
        self.entries, self.vectors = self._update(source)
        if not self.entries:
            raise PVChatError("The gallery has no readable picture or video.")

    def _files(self) -> tuple[Path, Path]:
        return self.folder / "clip-index.safetensors", self.folder / "clip-index.json"

    def _load(self) -> tuple[list[dict], np.ndarray]:
        """What an earlier call left; nothing when it was made by another encoder or is damaged."""
        from safetensors.numpy import load_file

        tensors, record = self._files()
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            if (found["version"], found["encoder"]) == (INDEX_VERSION, self._encoder.id):
                if hash_file(tensors) == found["vectors_sha256"]:
                    return found["entries"], load_file(tensors)["embeddings"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return [], np.zeros((0, 0), np.float32)

    def _save(self, entries: list[dict], vectors: list[np.ndarray]) -> None:
        from safetensors.numpy import save_file

        tensors, record = self._files()
        write_atomically(tensors, lambda target: save_file({"embeddings": np.stack(vectors)}, target))
        write_json(
            record,
            {
                "version": INDEX_VERSION,
                "encoder": self._encoder.id,
                "vectors_sha256": hash_file(tensors),
                "entries": entries,
            },
        )

    def _update(self, source: Source) -> tuple[list[dict], np.ndarray]:
        old_entries, old_vectors = self._load()
        by_stamp = {tuple(entry["stamp"]): entry["sha256"] for entry in old_entries}
        known = {entry["sha256"]: vector for entry, vector in zip(old_entries, old_vectors, strict=True)}
        entries: list[dict] = []
        waiting: list[tuple[dict, np.ndarray]] = []
        next_save = FIRST_SAVE

        def encode() -> None:
            for (entry, _), vector in zip(waiting, self._encoder.encode([p for _, p in waiting]), strict=True):
                known[entry["sha256"]] = vector
                entries.append(entry)
            waiting.clear()

        for index in range(len(source)):
            stamp = source.stamp(index)
            try:
                sha256 = by_stamp.get(tuple(stamp)) or source.sha256(index)
                entry = {"stamp": stamp, "sha256": sha256, "index": index}
                if sha256 in known:
                    entries.append(entry)
                    continue
                waiting.append((entry, source.still(index)))
            except (PVChatError, OSError) as error:
                self.skipped[str(stamp[0])] = str(error)
                continue
            if len(waiting) == BATCH:
                encode()
                if len(entries) >= next_save:
                    self._save(entries, [known[e["sha256"]] for e in entries])
                    next_save *= 2
        if waiting:
            encode()
        entries.sort(key=lambda entry: entry["index"])
        vectors = [known[entry["sha256"]] for entry in entries]
        if entries and entries != old_entries:
            self._save(entries, vectors)
        return entries, np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)


class ClipTopK:
    """CLIP's ranking of a gallery for one subject, without the subject.

    source: see source.open_source. index: the folder of the index; unpacked entries of a data set lie there, too.
    query: the encoder's embedding (D,) of a still of the subject. embed: as in FaceTopK; called for the most alike
    pictures only.
    Raises PVChatError for an unusable source.
    """

    def __init__(
        self,
        source: Any,
        index: str | Path,
        encoder: ClipEncoder,
        query: np.ndarray,
        embedder: FaceEmbedder,
        embed: Callable[[Path, str], np.ndarray],
    ):
        self.source = open_source(source, Path(index) / "unpacked")
        self.index = ClipIndex(self.source, index, encoder)
        self.embedder = embedder
        self.id = f"clip-topk@1:{encoder.id}"
        self.licences = ("user",)
        self.skipped: dict[Path, str] = {}
        self._query = query
        self._embed = embed
        self._faces: dict[str, np.ndarray | None] = {}

    def search(self, embedding: np.ndarray, k: int) -> list[Match]:
        """Up to k people that are not the subject, one picture each, by CLIP similarity (which Match carries).

        embedding: the subject's, by the face embedder.
        """
        similarity = self.index.vectors @ self._query
        entries = self.index.entries
        ranking = sorted(
            range(len(entries)), key=lambda i: (-similarity[i], entries[i]["sha256"], entries[i]["index"])
        )
        screened = max(SCREENED, 8 * k)
        while True:
            pool = [i for i in ranking[:screened] if self._face(entries[i]) is not None]
            faces = [self._faces[entries[i]["sha256"]] for i in pool]
            chosen = choose_others(
                embedding,
                np.stack(faces) if faces else np.zeros((0, len(embedding))),
                [self.source.persons[entries[i]["index"]] for i in pool],
                range(len(pool)),
                same=self.embedder.same,
                band=(-np.inf, self.embedder.same),
                k=k,
            )
            if len(chosen) == k or screened >= len(ranking):
                break
            screened *= 2
        found = [(pool[c], entries[pool[c]]) for c in chosen]
        return [Match(self.source.path(e["index"]), e["sha256"], float(similarity[i])) for i, e in found]

    def _face(self, entry: dict) -> np.ndarray | None:
        sha256 = entry["sha256"]
        if sha256 not in self._faces:
            path = self.source.path(entry["index"])
            try:
                self._faces[sha256] = self._embed(path, sha256)
            except (Rejected, PVChatError) as error:
                self.skipped[path] = str(error)
                self._faces[sha256] = None
        return self._faces[sha256]
