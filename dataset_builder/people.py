"""A person in a file, by paths: what the stages before the generators hand on, each adding what it found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import PVChatError
from .engine import Artefact
from .protocols import Person
from .video_io import read_video

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PICTURE_FRAMES = 16  # of the clip that a picture becomes
PICTURE_FPS = 8.0


@dataclass(frozen=True)
class Source:
    """A file as ingested: its path and sha256 (the parent of everything made from it), and the normalised clip."""

    path: Path
    file_sha256: str
    clip: Artefact


@dataclass(frozen=True)
class PersonFiles:
    """Where the pixels of a person lie. path: an mp4 of which `frames` evenly spaced frames are meant, or a .npy
    (T, H, W, 3 or 4) uint8 whose fourth channel is the matte. matte: .npy (T, H, W) uint8."""

    path: Path
    fps: float
    frames: int
    matte: Path | None = None
    best: int = 0

    def load(self) -> Person:
        """The same object for the same files, as long as they are among the last few."""
        return _load(self)


@lru_cache(maxsize=4)
def _load(files: PersonFiles) -> Person:
    if files.path.suffix == ".npy":
        pixels = np.load(files.path)
        alpha = pixels[..., 3] if pixels.shape[-1] == 4 else None
        return Person(pixels[..., :3], files.fps, alpha, files.best)
    pixels, fps = read_video(files.path)
    if len(pixels) > files.frames:
        pixels = pixels[np.linspace(0, len(pixels) - 1, files.frames).round().astype(int)]
    return Person(pixels, fps, None if files.matte is None else np.load(files.matte), files.best)


@dataclass(frozen=True)
class Footage:
    """One person in one source.

    subject: the name, when it is one of the people to learn. box: where they are, as shares of the frame (x0, y0, x1,
    y1), when the user said so. photo: a picture of them, by which they are told from others in the source. clip: the
    mp4 in which they are alone, or at least in the middle. frames: how many evenly spaced frames of it are used.
    faces, matte, embedding, best: what the stages found.
    """

    source: Source
    clip: Artefact
    frames: int
    subject: str | None = None
    box: tuple[float, float, float, float] | None = None
    photo: Path | None = None
    faces: Artefact | None = None
    matte: Artefact | None = None
    embedding: Artefact | None = None
    best: int = 0

    @property
    def label(self) -> str:
        """How messages name them."""
        return self.subject or self.source.path.name

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of everything that decides the pixels of `files`."""
        return tuple(artefact.sha256 for artefact in (self.clip, self.matte) if artefact is not None)

    @property
    def files(self) -> PersonFiles:
        matte = None if self.matte is None else self.matte.path
        return PersonFiles(self.clip.path, self.clip.meta["fps"], self.frames, matte, self.best)

    def vector(self) -> np.ndarray:
        """The embedding (D,) float32 of length 1."""
        return np.load(self.embedding.path)


def open_picture(file: Path | BinaryIO, name: Any):
    """The picture in a file, upright and in RGB, as a PIL image. Raises PVChatError, naming `name`, when there is
    none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PVChatError(f"The picture {name} cannot be read; use a png or jpeg file.") from error


def read_picture(path: Path, max_side: int) -> tuple[np.ndarray, float]:
    """A picture as a clip that does not move: frames (PICTURE_FRAMES, H, W, 3) and frames per second."""
    image = open_picture(path, path)
    scale = min(1.0, max_side / max(image.size))
    size = tuple(max(2, round(side * scale / 2) * 2) for side in image.size)
    return np.repeat(np.asarray(image.resize(size))[None], PICTURE_FRAMES, 0), PICTURE_FPS
