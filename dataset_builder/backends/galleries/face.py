"""Role FaceGallery by face embeddings: people in a band of similarity, alike but not the same person."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import PVChatError
from ...engine import Rejected
from ...protocols import FaceEmbedder, Match
from ..others import choose_others
from .source import open_source


class FaceTopK:
    """The k people of a gallery most alike the subject within the band.

    source: see source.open_source. embed: file, sha256 -> embedding, or raises engine.Rejected / PVChatError for a
    file without a usable face; such files are listed in `skipped` with the reason.
    band: cosines from the first on and below the second; by default from the embedder's `different` to its `same`.
    Pass (-1, same) to take the most alike even where nobody is much alike.
    unpacked: where entries of a data set are written as files.
    Raises PVChatError for an unusable source, and for a band that reaches above `same`, where the subject is.
    """

    id = "face-topk@1"
    licences = ("user",)

    def __init__(
        self,
        source: Any,
        embedder: FaceEmbedder,
        embed: Callable[[Path, str], np.ndarray],
        unpacked: str | Path,
        band: tuple[float, float] | None = None,
    ):
        self.embedder = embedder
        self.band = (embedder.different, embedder.same) if band is None else band
        low, high = self.band
        if not low < high <= embedder.same:
            raise PVChatError(
                f"The similarity band must go from a lower to a higher number, at most {embedder.same} (from there on "
                f"{embedder.id} sees the same person), got {low} to {high}."
            )
        self.source = open_source(source, unpacked)
        self.skipped: dict[Path, str] = {}
        self._embed = embed
        self._people: tuple[list[Match], list[str], np.ndarray] | None = None

    def _gallery(self) -> tuple[list[Match], list[str], np.ndarray]:
        """(files, persons, embeddings (N, D)), sorted by sha256, without copies of a file and unusable files."""
        if self._people is None:
            found: dict[str, tuple[Match, str, np.ndarray]] = {}
            for index in range(len(self.source)):
                path, sha256 = self.source.path(index), self.source.sha256(index)
                if sha256 in found:
                    continue
                try:
                    vector = self._embed(path, sha256)
                except (Rejected, PVChatError) as error:
                    self.skipped[path] = str(error)
                    continue
                found[sha256] = Match(path, sha256), self.source.persons[index], vector
            people = [found[sha256] for sha256 in sorted(found)]
            vectors = np.stack([vector for _, _, vector in people]) if people else np.zeros((0, 1))
            self._people = [match for match, _, _ in people], [person for _, person, _ in people], vectors
        return self._people

    def search(self, embedding: np.ndarray, k: int) -> list[Match]:
        """Up to k people in the band, most alike first, one picture each; never the subject."""
        matches, persons, vectors = self._gallery()
        if not matches:
            return []
        similarity = np.asarray(vectors, np.float64) @ np.asarray(embedding, np.float64)
        ranking = sorted(range(len(matches)), key=lambda i: (-similarity[i], matches[i].sha256))
        chosen = choose_others(
            embedding, vectors, persons, ranking, same=self.embedder.same, band=self.band, k=k
        )  # fmt: skip
        return [Match(matches[i].path, matches[i].sha256, float(similarity[i])) for i in chosen]
