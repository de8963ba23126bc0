"""From a file to a Person: ingest, matte, choice of the best still. Every step is an engine artefact."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import PVChatError
from .engine import Artefact, Engine, Rejected, Stage, hash_file
from .protocols import FaceEmbedder, Person, QualityFilter
from .records import Reject
from .video_io import read_video, write_video

MAX_SIDE = 256  # pixels; larger videos are reduced
MAX_FRAMES = 16  # longer videos are sampled evenly
STILL_FRAMES = 4  # frames that are looked at where motion does not matter

INGEST = Stage("ingest", 1, f"pyav-{MAX_SIDE}-{MAX_FRAMES}", ".mp4")
MATTE = Stage("matte", 1, "random-walk@1", ".npy")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Source:
    """A file as ingested: its own sha256 (the parent of everything made from it), and the normalised clip."""

    file_sha256: str
    clip: Artefact


class People:
    """Loads people through the engine, so that a matte is computed once per file and length."""

    def __init__(self, engine: Engine, quality: QualityFilter, embedder: FaceEmbedder):
        self.engine, self.quality, self.embedder = engine, quality, embedder
        self._last: dict[tuple[str, int], Person] = {}

    def ingest(self, path: Path) -> Source:
        """Raises PVChatError for a file that is not a usable video or picture."""
        sha256 = hash_file(path)

        def make(target: Path) -> dict:
            frames, fps = (
                read_picture(path) if path.suffix.lower() in IMAGES else read_video(path, MAX_SIDE, MAX_FRAMES)
            )
            write_video(target, frames, fps)
            return {"fps": fps, "num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2]}

        return Source(sha256, self.engine.run(INGEST, make, item=path.name, params={}, inputs=[sha256]))

    def person(self, source: Source, frames: int = MAX_FRAMES) -> Person:
        """`frames` evenly spaced frames of the source with their matte and the best still.

        Raises engine.Rejected when no person stands out.
        """
        key = source.clip.sha256, frames
        if key in self._last:
            return self._last[key]
        pixels, fps = read_video(source.clip.path)
        if len(pixels) > frames:
            pixels = pixels[np.linspace(0, len(pixels) - 1, frames).round().astype(int)]

        def make(target: Path) -> dict:
            from .backends.light.cutout import check_matte, matte_bytes

            alpha = matte_bytes(pixels)
            check_matte(pixels, alpha)
            buffer = io.BytesIO()
            np.save(buffer, alpha)
            target.write_bytes(buffer.getvalue())
            return {}

        matte = self.engine.run(
            MATTE, make, item=source.clip.path.name, params={"frames": frames}, inputs=[source.clip.sha256]
        )
        if isinstance(matte, Reject):
            raise Rejected(matte.reason)
        person = Person(pixels, fps, np.load(matte.path))
        person = replace(person, best=self._best(person, source))
        self._last[key] = person
        while len(self._last) > 4:
            self._last.pop(next(iter(self._last)))
        return person

    def _best(self, person: Person, source: Source) -> int:
        """The index of the best usable still. Raises engine.Rejected when no frame is usable."""
        stage = Stage("select", 1, self.quality.id, ".json")

        def make(target: Path) -> dict:
            reports = self.quality.score(person)
            usable = [i for i, report in enumerate(reports) if not report.reasons]
            if not usable:
                raise Rejected(f"no usable still: {reports[0].reasons[0]}")
            best = max(usable, key=lambda i: reports[i].score)
            target.write_text(json.dumps([report.score for report in reports]), encoding="utf-8")
            return {"best": best}

        params = {"frames": len(person.frames)}
        outcome = self.engine.run(stage, make, item=source.clip.path.name, params=params, inputs=[source.clip.sha256])
        if isinstance(outcome, Reject):
            raise Rejected(outcome.reason)
        return outcome.meta["best"]

    def embedding(self, source: Source) -> np.ndarray:
        """The embedding (D,) of an ingested file. Raises engine.Rejected when no person stands out."""
        stage = Stage("embed", 1, self.embedder.id, ".npy")

        def make(target: Path) -> dict:
            vector = self.embedder.embed(self.person(source, STILL_FRAMES))
            buffer = io.BytesIO()
            np.save(buffer, vector)
            target.write_bytes(buffer.getvalue())
            return {}

        outcome = self.engine.run(
            stage, make, item=source.clip.path.name, params={"frames": STILL_FRAMES}, inputs=[source.clip.sha256]
        )
        if isinstance(outcome, Reject):
            raise Rejected(outcome.reason)
        return np.load(outcome.path)


def read_picture(path: Path) -> tuple[np.ndarray, float]:
    """A picture as a clip that does not move: frames (MAX_FRAMES, H, W, 3) and 8 frames per second."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise PVChatError(f"The picture {path} cannot be read; use a png or jpeg file.") from error
    scale = min(1.0, MAX_SIDE / max(image.size))
    size = tuple(max(2, round(side * scale / 2) * 2) for side in image.size)
    return np.repeat(np.asarray(image.resize(size))[None], MAX_FRAMES, 0), 8.0
