"""Role FaceEmbedder without learnt weights: shape (HOG) and colours of the cut-out head.

Weak on photographs: it tells looks apart, not people. Its thresholds are its own.

Where a photographed face is found, it says where the head is: what hides the neck, and how the matte ends, then does
not matter. Else the outline of the matte says it.
"""

from __future__ import annotations

import numpy as np

from ...protocols import Person
from .colour import rgb_to_lab
from .cutout import check_matte, head_geometry, matte_bytes
from .face import find_face

SIDE = 64  # pixels of the normalised head
GRID = 8  # colour cells per side
FRAMES = 3  # frames that are averaged


class HeadEmbedder:
    """Heads are cropped, scaled to SIDE, put on grey by the matte, averaged with their mirror image."""

    id = "head-hog@3"
    licences = ("Apache-2.0",)
    same = 0.97
    different = 0.55

    def embed(self, person: Person) -> np.ndarray:
        """-> (D,) float32 of length 1. Raises engine.Rejected when no person stands out."""
        index = np.unique(np.linspace(0, len(person.frames) - 1, FRAMES).round().astype(int))
        frames = person.frames[index]
        alpha = matte_bytes(frames) if person.alpha is None else person.alpha[index]
        check_matte(frames, alpha)
        parts = [_describe(f, a, box) for f, a, box in zip(frames, alpha, head_boxes(frames, alpha), strict=True)]
        vector = np.mean(parts, axis=0)
        return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


def head_boxes(frames: np.ndarray, alpha: np.ndarray) -> list[tuple[int, int, int, int]]:
    """frames (T, H, W, 3), alpha (T, H, W) -> x0, y0, x1, y1 of the head in each, in pixels."""
    faces = find_face(frames)
    if faces is not None:
        # The same shares of the face as in `matte`: the head is 1.7 faces wide and reaches 1.15 above its middle.
        sides = [(cx - 0.85 * s, cy - 1.15 * s, cx + 0.85 * s, cy + 0.95 * s) for cx, cy, s in faces]
    else:
        sides = []
        for top, neck, centre, width in zip(*head_geometry(alpha), strict=True):
            half = max(4.0, 0.62 * width, 0.5 * (neck - top))
            sides.append((centre - half, top, centre + half, max(neck, top + 8)))
    return [tuple(round(side) for side in box) for box in sides]


def _describe(frame: np.ndarray, alpha: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    from PIL import Image
    from skimage.feature import hog

    mask = np.asarray(Image.fromarray(alpha).crop(box).resize((SIDE, SIDE)), np.float32)[..., None] / 255
    head = np.asarray(Image.fromarray(frame).crop(box).resize((SIDE, SIDE)), np.float32)
    head = (mask * head + (1 - mask) * 128).astype(np.uint8)
    grey = head.astype(np.float32).mean(-1) / 255
    shape = sum(hog(g, orientations=8, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for g in (grey, grey[:, ::-1]))
    lab = rgb_to_lab(head) - np.float32([53.6, 0, 0])
    cells = lab.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID, 3).mean((1, 3))
    colours = (cells + cells[:, ::-1]).ravel()
    return np.concatenate([shape / max(np.linalg.norm(shape), 1e-9), colours / max(np.linalg.norm(colours), 1e-9)])
