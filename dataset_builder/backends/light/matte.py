"""Which pixels of a clip are the person: a matte from the pixels alone.

The assumption is that of a portrait clip: one person near the centre, or where a photographed face is found, who may
touch the lower edge, and a background that reaches the upper edge and the sides. Colours of that border band (over all
frames) model the background, colours of the centre, or around the face, model the person; a random walk over space and
time (Grady 2006, with priors) turns the two into a smooth decision whose edges follow the picture's edges.

Shapes: T frames, H x W full size, h x w working size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .colour import rgb_to_lab
from .face import face_boxes, shrink

WORKING_SIDE = 128  # pixels on the longer side while solving
BINS = 24  # colour bins per Lab axis
BAND = 0.08  # share of width and height that counts as border
CENTRE_MIX = 0.3  # how much any colour near the centre counts as the person's
PRIOR_WEIGHT = 0.15  # of the position prior against the colours (log odds)
FACE_PRIOR_WEIGHT = 0.6  # the same where the position is known by a face
UNARY = 0.02  # of colour and position against neighbours (edge weights are at most 1)
MIN_GAP = 0.008  # share of the frame from which a hole may be background seen through
ITERATIONS = 60  # conjugate gradient steps; more change the matte by less than a thousandth


@dataclass(frozen=True)
class _Layout:
    """Where the person should be. prior: probability (T, h, w) within [0.02, 0.98]. band: (T, h, w), whose colours
    model the background. inside, outside: (T, h, w), what certainly is the person or is not. weight: of the prior
    against the colours (log odds)."""

    prior: np.ndarray
    band: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    weight: float


def subject_matte(frames: np.ndarray) -> np.ndarray:
    """frames (T, H, W, 3) uint8 -> alpha (T, H, W) float32 in [0, 1], 1 where the person is."""
    H, W = frames.shape[1:3]
    small = shrink(frames, WORKING_SIDE)
    lab = rgb_to_lab(small)
    layout = _layout(small)
    bins = _colour_bins(lab)
    background = _histogram(bins, np.where(layout.band, 1.0, (layout.prior < 0.1) * 0.3))
    person = _histogram(bins, layout.prior > 0.85)
    person = (1 - CENTRE_MIX) * person + CENTRE_MIX * _histogram(bins, layout.prior > 0.3)
    log_odds = np.clip(np.log(person[bins] + 1e-6) - np.log(background[bins] + 1e-6), -4, 4)
    log_odds += layout.weight * np.log(layout.prior / (1 - layout.prior))
    belief = (1 / (1 + np.exp(-log_odds))).astype(np.float32)

    seeds = layout.inside | layout.outside
    alpha = _random_walk(lab, belief, seeds, layout.inside.astype(np.float32))
    alpha = np.stack([_one_piece(*frame) for frame in zip(alpha, belief, layout.inside, strict=True)])
    alpha = _resize_alpha(alpha, H, W)
    return _smoothstep(alpha, 0.35, 0.65)


def _layout(small: np.ndarray) -> _Layout:
    """small (T, h, w, 3): around the face where one is found, else head and shoulders in the middle."""
    T, h, w = small.shape[:3]
    y, x = (np.mgrid[0:h, 0:w] + 0.5) / np.array([h, w]).reshape(2, 1, 1)
    side = np.minimum(x, 1 - x)
    boxes = face_boxes(small)
    if boxes is not None:
        layouts = [_around_face(y * h, x * w, y, side, *box) for box in boxes]
        return _Layout(*(np.stack(part) for part in zip(*layouts, strict=True)), FACE_PRIOR_WEIGHT)
    band = (y < BAND) | ((side < BAND) & (y < 0.66))
    outside = (y < BAND / 4) | ((side < BAND / 4) & (y < 0.6))
    inside = (((x - 0.5) / 0.07) ** 2 + ((y - 0.45) / 0.1) ** 2 < 1) | ((np.abs(x - 0.5) < 0.06) & (y > 0.85))
    maps = (_position_prior(y, x), band, inside, outside)
    return _Layout(*(np.broadcast_to(part, (T, h, w)) for part in maps), PRIOR_WEIGHT)


def _around_face(
    row: np.ndarray, column: np.ndarray, y: np.ndarray, side: np.ndarray, cx: float, cy: float, face: float
) -> tuple[np.ndarray, ...]:
    """(prior, band, inside, outside) of one frame, each (h, w). row, column: pixels; y, side: shares of the frame as
    in `_layout`; cx, cy, face: the square of the face in pixels, from the brows to the mouth."""
    dx, dy = (column - cx) / face, (row - cy) / face
    head = np.exp(-(((dx / 0.85) ** 2 + ((dy + 0.1) / 1.05) ** 2) ** 2))
    shoulders = 0.45 + 1.35 / (1 + np.exp(-(dy - 1.25) / 0.15))  # half width: neck, then shoulders
    body = np.exp(-((np.abs(dx) / shoulders) ** 4)) / (1 + np.exp(-(dy - 0.6) / 0.1))
    prior = np.clip(np.maximum(head, body), 0.02, 0.98)
    far = prior < 0.1
    band = far & ((y < BAND) | (side < BAND) | (np.abs(dx) > 1.2))
    outside = (prior < 0.03) & ((y < BAND / 4) | (side < BAND / 4) | (dy < -1.4))
    inside = ((dx / 0.45) ** 2 + (dy / 0.55) ** 2 < 1) | ((np.abs(dx) < 0.3) & (dy > 1.4))
    return prior, band, inside, outside


def _resize_alpha(alpha: np.ndarray, H: int, W: int) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(a).resize((W, H), Image.Resampling.BICUBIC)) for a in alpha])


def _smoothstep(value: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((value - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _position_prior(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Head and shoulders in the middle: probability (h, w) within [0.02, 0.98]."""
    head = np.exp(-((((x - 0.5) / 0.22) ** 2 + ((y - 0.42) / 0.30) ** 2) ** 2))
    body = np.exp(-((np.abs(x - 0.5) / 0.36) ** 4)) / (1 + np.exp(-(y - 0.78) / 0.05))
    return np.clip(np.maximum(head, body), 0.02, 0.98)


def _colour_bins(lab: np.ndarray) -> np.ndarray:
    scaled = (lab + np.float32([0, 64, 64])) / np.float32([100, 128, 128]) * BINS
    index = np.clip(scaled.astype(np.int32), 0, BINS - 1)
    return (index[..., 0] * BINS + index[..., 1]) * BINS + index[..., 2]


def _histogram(bins: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Share of each colour bin over all frames, weighted by position (T, h, w) and blurred by 0.6 bins."""
    from scipy.ndimage import gaussian_filter

    weights = np.broadcast_to(weight.astype(np.float64), bins.shape)
    counts = np.bincount(bins.ravel(), weights.ravel(), BINS**3).reshape(BINS, BINS, BINS)
    counts = gaussian_filter(counts, 0.6).ravel()
    return counts / max(counts.sum(), 1e-9)


def _random_walk(lab: np.ndarray, belief: np.ndarray, seeds: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Minimises sum_edges w (a_i - a_j)^2 + UNARY * sum (a_i - belief_i)^2 with a = values at seeds; all (T, h, w)."""
    dx = ((lab[:, :, 1:] - lab[:, :, :-1]) ** 2).sum(-1)
    dy = ((lab[:, 1:] - lab[:, :-1]) ** 2).sum(-1)
    dt = ((lab[1:] - lab[:-1]) ** 2).sum(-1)
    sharpness = 2.0 / max((dx.sum() + dy.sum()) / (dx.size + dy.size), 1e-6)
    wx = np.exp(-sharpness * dx) + np.float32(1e-3)
    wy = np.exp(-sharpness * dy) + np.float32(1e-3)
    wt = np.float32(0.3) * np.exp(-sharpness * dt) + np.float32(1e-4)
    degree = np.full_like(belief, UNARY)
    degree[:, :, :-1] += wx
    degree[:, :, 1:] += wx
    degree[:, :-1] += wy
    degree[:, 1:] += wy
    degree[:-1] += wt
    degree[1:] += wt
    free = ~seeds

    def apply(a: np.ndarray) -> np.ndarray:
        out = degree * a
        out[:, :, :-1] -= wx * a[:, :, 1:]
        out[:, :, 1:] -= wx * a[:, :, :-1]
        out[:, :-1] -= wy * a[:, 1:]
        out[:, 1:] -= wy * a[:, :-1]
        out[:-1] -= wt * a[1:]
        out[1:] -= wt * a[:-1]
        return out

    alpha = np.where(seeds, values, belief).astype(np.float32)
    residual = (np.float32(UNARY) * belief - apply(alpha)) * free
    step = residual / degree
    direction = step.copy()
    energy = float((residual * step).sum())
    for _ in range(ITERATIONS):
        image = apply(direction) * free
        length = np.float32(energy / max(float((direction * image).sum()), 1e-12))
        alpha += length * direction
        residual -= length * image
        step = residual / degree
        next_energy = float((residual * step).sum())
        direction = step + np.float32(next_energy / max(energy, 1e-12)) * direction
        energy = next_energy
    return np.clip(alpha, 0, 1)


def _one_piece(alpha: np.ndarray, belief: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Keeps the pieces of one frame (h, w) that hold a seed, and closes their holes, except large ones that look like
    background (between an arm and the head)."""
    from scipy.ndimage import binary_fill_holes, label

    pieces, _ = label(alpha > 0.5)
    kept = np.unique(pieces[inside])
    piece = np.isin(pieces, kept[kept > 0])
    closed = binary_fill_holes(np.vstack([piece, np.ones((1, piece.shape[1]), bool)]))[:-1]
    holes, count = label(closed & ~piece)
    for hole in range(1, count + 1):
        area = holes == hole
        if area.mean() > MIN_GAP and belief[area].mean() < 0.4:
            closed &= ~area
    return np.where(closed, np.where(piece, alpha, 1.0), np.minimum(alpha, 0.3)).astype(np.float32)
