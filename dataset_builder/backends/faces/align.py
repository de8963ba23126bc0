"""Upright, equally large faces: a similarity from the five points of a face to a template, and crops of boxes.

The five points are left eye, right eye, nose tip, left and right corner of the mouth, left and right as seen in the
picture. Coordinates are x, y in pixels; a pixel's number stands for its centre.
"""

from __future__ import annotations

import numpy as np

from ....errors import PVChatError

# DeepFaceLab fits its mean face to the unit square and cuts a square that is 2 (0.4 sqrt(2) + 0.5) wide around
# (0.5, 0.43) (LandmarksProcessor.py, face type "whole_face"). The five points of that mean face (landmarks 36-41 and
# 42-47 averaged, 30, 48, 54) as shares of the cut square:
WHOLE_FACE = np.array(
    [[0.371206, 0.399590], [0.619529, 0.399590], [0.495368, 0.540174], [0.384651, 0.664322], [0.606096, 0.664322]]
)
# The template of ArcFace, SFace and their kin (insightface, face_align.py): pixels of a 112 x 112 picture.
ARCFACE = (
    np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
    / 112
)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scaling and shift (2, 3) that brings source (N, 2) closest to target (N, 2), in least squares.

    Raises PVChatError when the source points coincide.
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in np.asarray([source, target], np.float64))
    centred = z - z.mean()
    spread = float((abs(centred) ** 2).sum())
    if spread < 1e-12:
        raise PVChatError("A face cannot be aligned: its points coincide; use another detector.")
    turn = (centred.conj() * w).sum() / spread
    shift = w.mean() - turn * z.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def align(frame: np.ndarray, points: np.ndarray, template: np.ndarray, size: int) -> np.ndarray:
    """The face at `points` (5, 2) in frame (H, W, 3) uint8, moved onto the template -> (size, size, 3) uint8.

    template: (5, 2), shares of the side. What lies outside the frame is black.
    """
    from PIL import Image

    matrix = similarity(np.asarray(points) + 0.5, template * size + 0.5)
    finer = max(1, round(1 / np.hypot(*matrix[:, 0])))  # a large face is first cut as large as it is
    back = np.linalg.inv(np.vstack([finer * matrix, [0, 0, 1]]))[:2]
    cut = Image.fromarray(frame).transform(
        (finer * size, finer * size), Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BICUBIC
    )
    return np.asarray(cut.reduce(finer))


def crop_box(frame: np.ndarray, box: tuple[float, float, float, float], size: int, margin: int = 0) -> np.ndarray:
    """The box (x0, y0, x1, y1) of frame (H, W, 3) uint8, stretched to (size, size, 3) uint8.

    margin: pixels of the result that lie outside the box, both sides together; cut off at the frame's edge.
    Follows `extract_face` of facenet-pytorch 2.6.0.
    """
    from PIL import Image

    x0, y0, x1, y1 = (float(side) for side in box)
    extra_x, extra_y = (margin * length / (size - margin) / 2 for length in (x1 - x0, y1 - y0))
    height, width = frame.shape[:2]
    edges = max(x0 - extra_x, 0), max(y0 - extra_y, 0), min(x1 + extra_x, width), min(y1 + extra_y, height)
    return np.asarray(Image.fromarray(frame).crop([int(e) for e in edges]).resize((size, size), Image.BILINEAR))
