"""Roles FaceGallery and NegativeRetriever: a folder of pictures and videos of other people."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ....errors import PVChatError
from ...engine import Rejected, hash_file
from ...people import IMAGES
from ...protocols import FaceEmbedder, Match
from ..others import choose_others

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


class FolderGallery:
    """Every picture or video in the folder (and below) is one person.

    embed: file -> embedding, or raises engine.Rejected / PVChatError for a file without a usable person; such files
    are listed in `skipped` with the reason. hashes: the sha256 of files that are known already.
    """

    id = "folder@1"
    licences = ("user",)

    def __init__(
        self,
        folder: str | Path,
        embedder: FaceEmbedder,
        embed: Callable[[Path, str], np.ndarray],
        hashes: Mapping[Path, str] | None = None,
    ):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise PVChatError(
                f"The gallery {self.folder} is not a folder; pass a folder of pictures or videos of others."
            )
        self.files = list_gallery(self.folder)
        if not self.files:
            raise PVChatError(f"The gallery {self.folder} has no pictures or videos ({', '.join(IMAGES + VIDEOS)}).")
        self.embedder = embedder
        self.skipped: dict[Path, str] = {}
        self._embed = embed
        self._hashes = hashes or {}
        self._vectors: dict[str, tuple[Path, np.ndarray]] | None = None

    def _people(self) -> dict[str, tuple[Path, np.ndarray]]:
        """sha256 -> (file, embedding), without copies of a file and without unusable files."""
        if self._vectors is None:
            self._vectors = {}
            for path in self.files:
                sha256 = self._hashes.get(path) or hash_file(path)
                if sha256 in self._vectors:
                    continue
                try:
                    self._vectors[sha256] = path, self._embed(path, sha256)
                except (Rejected, PVChatError) as error:
                    self.skipped[path] = str(error)
        return self._vectors

    def search(self, embedding: np.ndarray, k: int) -> list[Match]:
        """Up to k people, most alike first; who is left out is said in backends.others."""
        people = [(Match(path, sha, float(v @ embedding)), v) for sha, (path, v) in self._people().items()]
        if not people:
            return []
        people.sort(key=lambda one: (-one[0].similarity, one[0].sha256))
        same, vectors = self.embedder.same, np.stack([vector for _, vector in people])
        chosen = choose_others(
            embedding, vectors, range(len(people)), range(len(people)), same=same, band=(-np.inf, same), k=k
        )  # fmt: skip
        return [people[index][0] for index in chosen]

    def sample(self, n: int, seed: int, exclude: Sequence[str] = ()) -> list[Match]:
        """Up to n people in random order, without those excluded by sha256."""
        people = sorted((sha, path) for sha, (path, _) in self._people().items() if sha not in set(exclude))
        random.Random(seed).shuffle(people)
        return [Match(path, sha) for sha, path in people[:n]]


def list_gallery(folder: Path) -> list[Path]:
    """All pictures and videos below the folder, sorted by path; hidden files and folders are left out."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in VIDEOS + IMAGES
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
