"""Where the face of a portrait clip is, for the matte: the cascade of local binary patterns that ships with
scikit-image, on small frames. Frontal faces of photographs; drawn faces are hardly ever found.

Shapes: T frames, h x w working size.
"""

from __future__ import annotations

import numpy as np

from ..faces.lbp import frontal_face_cascade

LOOKED_AT = 5  # frames, evenly spaced; most must show the face
SEEN_SIDE = 192  # pixels of the longer side on which `find_face` looks; on 128 every other face is missed
SMALLEST = 24  # pixels: the size of the cascade's window
NEIGHBOURS = 8  # finds that make a face; from 8 on, none was found in 282 frames of drawn people
CHIN = 0.8  # how far below the middle of the square the face is over, in sides
TOGETHER = 0.3  # overlap (IoU) with the face of the nearest frame, from the middle outwards


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """(T, H, W, 3) uint8 with at most `side` pixels on the longer side."""
    from PIL import Image

    H, W = frames.shape[1:3]
    scale = min(1.0, side / max(H, W))
    size = max(8, round(W * scale)), max(8, round(H * scale))
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BOX)) for f in frames])


def find_face(frames: np.ndarray) -> np.ndarray | None:
    """frames (T, H, W, 3) uint8 -> squares (T, 3) as `face_boxes` gives them, in pixels of the frames."""
    small = shrink(frames, SEEN_SIDE)
    boxes = face_boxes(small)
    return None if boxes is None else boxes * (frames.shape[1] / small.shape[1])


def face_boxes(small: np.ndarray) -> np.ndarray | None:
    """small (T, h, w, 3) uint8 -> squares (T, 3) from the brows to the mouth: centre x, centre y, side in pixels,
    interpolated between the frames that show the face. None when too few do."""
    looked_at = np.unique(np.linspace(0, len(small) - 1, LOOKED_AT).round().astype(int))
    seen = [_detect(frame) for frame in small[looked_at]]
    middle = len(looked_at) // 2
    first = min((p for p, boxes in enumerate(seen) if boxes), key=lambda p: (abs(p - middle), p), default=None)
    if first is None:
        return None
    found = {first: _largest(seen[first])}
    for towards in (range(first - 1, -1, -1), range(first + 1, len(looked_at))):
        last = found[first]
        for position in towards:
            box = _largest([box for box in seen[position] if _overlap(box, last) >= TOGETHER])
            if box is not None:
                found[position] = last = box
    if 2 * len(found) <= len(looked_at) or len(found) < min(2, len(looked_at)):
        return None
    shown = sorted(found)
    columns = np.stack([found[position] for position in shown]).T
    return np.stack([np.interp(np.arange(len(small)), looked_at[shown], column) for column in columns], axis=1)


def _detect(frame: np.ndarray) -> list[np.ndarray]:
    side = min(frame.shape[:2])
    if side < SMALLEST:
        return []
    found = frontal_face_cascade().detect_multi_scale(
        frame,
        scale_factor=1.2,
        step_ratio=1,
        min_size=(SMALLEST, SMALLEST),
        max_size=(side, side),
        min_neighbor_number=NEIGHBOURS,
    )
    return [np.array([f["c"] + f["width"] / 2, f["r"] + f["height"] / 2, float(f["width"])]) for f in found]


def _largest(boxes: list[np.ndarray]) -> np.ndarray | None:
    return max(boxes, key=lambda box: tuple(box[::-1]), default=None)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two squares."""
    sides = np.minimum(a[:2] + a[2] / 2, b[:2] + b[2] / 2) - np.maximum(a[:2] - a[2] / 2, b[:2] - b[2] / 2)
    common = float(np.prod(np.maximum(sides, 0)))
    return common / (a[2] ** 2 + b[2] ** 2 - common)
