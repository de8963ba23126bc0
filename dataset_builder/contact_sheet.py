"""Contact sheets: a picture per origin with a row for every clip that was made, kept or not, for people to look at.

<folder>/<origin>.png; where several people are learned, <folder>/<number>-<origin>.png, numbered as they were given.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .engine import write_atomically
from .video_io import read_video

FRAMES = 5  # of a clip, evenly spaced
HEIGHT = 96  # pixels of a row
MOST_WIDE = 1.8  # width of a frame at most, in heights
TEXT = 430  # pixels for the text beside the frames
MARGIN = 6
COLOURS = {True: (20, 110, 40), False: (170, 30, 30)}


@dataclass(frozen=True)
class Row:
    """A clip and what was decided about it. reason: why it was dropped; None = kept."""

    path: Path
    label: str
    video_id: str
    id_score: float | None
    reason: str | None


def write_sheet(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Writes a PNG; the same rows give the same bytes."""
    from PIL import Image, ImageDraw, ImageFont

    strips = [_strip(row.path) for row in rows]
    left = max(strip.shape[1] for strip in strips) + 2 * MARGIN
    step = HEIGHT + MARGIN
    sheet = Image.new("RGB", (left + TEXT, 30 + step * len(rows)), (255, 255, 255))
    draw, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(16), ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN), title, (0, 0, 0), large)
    for number, (row, strip) in enumerate(zip(rows, strips, strict=True)):
        top = 30 + step * number
        sheet.paste(Image.fromarray(strip), (MARGIN, top))
        score = "not scored" if row.id_score is None else f"id_score {row.id_score:.3f}"
        lines = [f"{row.label}   {row.video_id}", score, "kept" if row.reason is None else "dropped:"]
        lines += [] if row.reason is None else _wrapped(row.reason, 60)
        for line, text in enumerate(lines):
            colour = (0, 0, 0) if line < 2 else COLOURS[row.reason is None]
            draw.text((left, top + 17 * line), text, colour, small)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(path, lambda target: target.write_bytes(buffer.getvalue()))


def _strip(path: Path) -> np.ndarray:
    """(HEIGHT, W, 3) uint8: a few frames side by side."""
    from PIL import Image

    frames, _ = read_video(path, max_frames=FRAMES)
    height, width = frames.shape[1:3]
    size = max(2, round(min(width / height, MOST_WIDE) * HEIGHT)), HEIGHT
    return np.concatenate([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames], axis=1)


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)[:3]
