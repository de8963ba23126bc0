"""A person cut out of a clip: clean colours, a matte, where the head ends, and which colours are clothes.

Shapes: T frames, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..._random import generator
from ...engine import Rejected
from ...protocols import Person
from .colour import lab_to_rgb, rgb_to_lab
from .face import CHIN, find_face
from .matte import subject_matte

MIN_AREA, MAX_AREA = 0.04, 0.9  # share of the frame that a usable matte covers
MAX_OVERLAP = 0.85  # shared colours of the person and the rest, above which the matte means nothing
LUT_SIZE = 25  # colour lattice points per RGB axis


@dataclass(frozen=True)
class Cutout:
    """rgb (T, H, W, 3) uint8 with the person's colours carried over the edge; alpha (T, H, W) uint8;
    top, neck, centre, width (T,) float: the head in pixels (width is that of the head)."""

    rgb: np.ndarray
    alpha: np.ndarray
    top: np.ndarray
    neck: np.ndarray
    centre: np.ndarray
    width: np.ndarray
    best: int = 0

    def __len__(self) -> int:
        return len(self.rgb)

    def take(self, index: np.ndarray) -> Cutout:
        """The frames at `index` (any order, repeats allowed)."""
        parts = {f: getattr(self, f)[index] for f in ("rgb", "alpha", "top", "neck", "centre", "width")}
        return replace(self, best=0, **parts)

    def still(self) -> Cutout:
        return self.take(np.array([self.best]))


_RECENT: list[tuple[Person, Cutout]] = []  # the last cut-outs: one person makes many clips


def cut_out(person: Person) -> Cutout:
    """Raises engine.Rejected when no person of a usable size is found. Uses `person.alpha` when it is there."""
    for known, cutout in _RECENT:
        if known is person:
            return cutout
    alpha = person.alpha if person.alpha is not None else matte_bytes(person.frames)
    check_matte(person.frames, alpha)
    rgb = np.stack([_bleed(f, a) for f, a in zip(person.frames, alpha, strict=True)])
    top, neck, centre, width = head_geometry(alpha)
    face = find_face(person.frames)
    if face is not None:  # below wide hair the outline is narrowest at the jaw, where the face is not over yet
        neck = np.maximum(neck, np.minimum(face[:, 1] + CHIN * np.median(face[:, 2]), alpha.shape[1] - 1))
    cutout = Cutout(rgb, alpha, top, neck, centre, width, person.best)
    _RECENT.append((person, cutout))
    del _RECENT[:-2]
    return cutout


def matte_bytes(frames: np.ndarray) -> np.ndarray:
    """The subject matte as uint8 (T, H, W)."""
    return (subject_matte(frames) * 255 + 0.5).astype(np.uint8)


def check_matte(frames: np.ndarray, alpha: np.ndarray) -> None:
    """Raises engine.Rejected when the matte has no usable size, or its colours are those of the whole picture."""
    inside = alpha > 127
    area = float(inside.mean())
    if not MIN_AREA <= area <= MAX_AREA:
        raise Rejected(f"no person stands out: the matte covers {area:.0%} of the frame")
    colours = (frames >> 4).astype(np.int32) @ np.array([256, 16, 1])
    person = np.bincount(colours[inside], minlength=4096) / inside.sum()
    rest = np.bincount(colours[~inside], minlength=4096) / (~inside).sum()
    if np.minimum(person, rest).sum() > MAX_OVERLAP:
        raise Rejected("no person stands out: the same colours are everywhere")


def _bleed(frame: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Gives every pixel that is not safely inside the colour of the nearest one that is: no background remains."""
    from scipy.ndimage import distance_transform_edt

    inside = alpha >= 128
    if not inside.any():
        return frame
    depth = distance_transform_edt(inside)
    safe = depth > max(1.0, 1.5 * len(frame) / 256)
    if not safe.any():
        safe = inside
    rows, columns = distance_transform_edt(~safe, return_distances=False, return_indices=True)
    return frame[rows, columns]


def head_geometry(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """alpha (T, H, W) uint8 -> top, neck, centre, width (T,) in pixels.

    The neck is where the silhouette around the head's axis is narrowest between its widest row and the shoulders;
    without such a place (long hair, a scarf) it is set at 0.66 of the silhouette's height.
    """
    T, H, W = alpha.shape
    tops, offsets, centres, widths = (np.zeros(T) for _ in range(4))
    for t in range(T):
        mask = alpha[t] > 127
        columns = np.arange(W)
        upper = mask[: int(H * 0.6)]
        weights = upper.sum(0) * np.exp(-(((columns / W - 0.5) / 0.25) ** 2))
        centre = float((weights * columns).sum() / max(weights.sum(), 1e-6)) if weights.sum() > 0 else W / 2
        core = mask[:, max(0, int(centre - 0.1 * W)) : int(centre + 0.1 * W) + 1].any(1)
        top = int(core.argmax()) if core.any() else 0
        run = _run_lengths(mask, int(centre))
        low, high = top + int(0.45 * (H - top)), top + int(0.85 * (H - top))
        offset = 0.66 * (H - top)
        if high > low + 2:
            smooth = np.convolve(run, np.ones(3) / 3, "same")
            narrow = low + int(smooth[low:high].argmin())
            above = smooth[top : narrow + 1].max()
            below = smooth[narrow : min(H, narrow + int(0.2 * H)) + 1].max()
            if smooth[narrow] < 0.85 * above and smooth[narrow] < 0.85 * below:
                offset = narrow - top
        head_rows = run[top : top + max(1, int(offset))]
        tops[t], offsets[t], centres[t] = top, offset, centre
        widths[t] = np.percentile(head_rows, 85) if len(head_rows) else 0.3 * W
    necks = np.minimum(tops + np.median(offsets), H - 1)
    return tops, necks, centres, np.full(T, np.median(widths))


def _run_lengths(mask: np.ndarray, centre: int) -> np.ndarray:
    """For every row of mask (H, W) the length of the unbroken run through column `centre`."""
    centre = min(max(centre, 0), mask.shape[1] - 1)
    right = np.cumprod(mask[:, centre:], axis=1).sum(1)
    left = np.cumprod(mask[:, : centre + 1][:, ::-1], axis=1).sum(1)
    return np.maximum(right + left - 1, 0).astype(float)


def below_neck(cutout: Cutout) -> np.ndarray:
    """(T, H, W) uint8: where clothes may be, below the neck or beside the head (a raised arm)."""
    T, H, W = cutout.alpha.shape
    y = np.arange(H, dtype=np.float32).reshape(1, H, 1)
    x = np.arange(W, dtype=np.float32).reshape(1, 1, W)
    neck = cutout.neck.reshape(T, 1, 1).astype(np.float32)
    low = np.clip((y - neck) / (0.02 * H) + 0.5, 0, 1)
    aside = np.abs(x - cutout.centre.reshape(T, 1, 1).astype(np.float32))
    wide = np.clip((aside - 0.7 * cutout.width.reshape(T, 1, 1).astype(np.float32)) / (0.02 * W), 0, 1)
    chest = np.clip((y - neck + 0.25 * H) / (0.05 * H), 0, 1)
    return (np.maximum(low, wide * chest) * 255).astype(np.uint8)


def recolour(cutout: Cutout, seed: int) -> Cutout:
    """Other clothes: the colours below the neck that the head does not have move to new ones; shading stays.

    Colours of skin and hair keep their place, so hands, beards and long hair stay as they are.
    """
    from PIL import Image, ImageFilter

    table = _colour_table(cutout, seed)
    if table is None:
        return cutout
    T, H, W = cutout.alpha.shape
    image = Image.fromarray(cutout.rgb.reshape(T * H, W, 3))
    lut = ImageFilter.Color3DLUT(LUT_SIZE, table.ravel().tolist())
    image.paste(image.filter(lut), mask=Image.fromarray(below_neck(cutout).reshape(T * H, W)))
    return replace(cutout, rgb=np.asarray(image).reshape(T, H, W, 3))


def _colour_table(cutout: Cutout, seed: int) -> np.ndarray | None:
    """A colour lattice (L, L, L, 3) in [0, 1] indexed by blue, green, red; None when no clothes are found."""
    rng = generator("recolour", seed)
    frames = np.unique(np.linspace(0, len(cutout) - 1, min(4, len(cutout))).astype(int))
    solid = cutout.alpha[frames] > 200
    H, W = solid.shape[1:]
    y = np.arange(H).reshape(1, H, 1)
    x = np.arange(W).reshape(1, 1, W)
    neck = cutout.neck[frames].reshape(-1, 1, 1)
    aside = np.abs(x - cutout.centre[frames].reshape(-1, 1, 1))
    head = solid & (y < neck - 0.03 * H) & (aside < 0.6 * cutout.width[frames].reshape(-1, 1, 1))
    face = (
        head
        & (aside < 0.3 * cutout.width[frames].reshape(-1, 1, 1))
        & (y > 0.5 * (neck + cutout.top[frames].reshape(-1, 1, 1)))
    )
    torso = solid & (y > neck + 0.03 * H)
    if head.sum() < 50 or torso.sum() < 50:
        return None
    lab = rgb_to_lab(cutout.rgb[frames])
    head_colours, head_share = _palette(lab[head])
    torso_colours, torso_share = _palette(lab[torso])
    sleeves = torso & (y > 0.85 * H) & (aside > 0.2 * W)
    sleeve_colours, sleeve_share = _palette(lab[sleeves]) if sleeves.sum() > 20 else (torso_colours, torso_share)
    face_colours, face_share = _palette(lab[face]) if face.sum() > 20 else (head_colours, head_share)
    skin = face_colours[face_share.argmax()]
    throat = solid & (y > neck - 0.07 * H) & (y < neck) & (aside < 0.06 * W)
    crown = head & (y < 0.75 * cutout.top[frames].reshape(-1, 1, 1) + 0.25 * neck)
    if throat.sum() > 20 and crown.sum() > 20:
        # A beard in the colour of the hair may cover the face; then skin is what face and throat share.
        throat_colours, throat_share = _palette(lab[throat])
        crown_colours, crown_share = _palette(lab[crown])
        common = throat_colours[throat_share.argmax()]
        is_hair = crown_share[np.linalg.norm(crown_colours - skin, axis=1) < 12].sum() > 0.3
        if is_hair and face_share[np.linalg.norm(face_colours - common, axis=1) < 12].sum() > 0.1:
            skin = common

    kept = [c for c, s in zip(head_colours, head_share, strict=True) if s > 0.02]
    worn = [(c, s) for c, s in zip(torso_colours, torso_share, strict=True) if s > 0.03]
    clothes = [(c, s) for c, s in worn if min(np.linalg.norm(c - k) for k in kept) > 16]
    # Clothes in a colour of the head: what covers the outer shoulders is clothes, unless it is skin.
    for colour, share in worn:
        near = np.linalg.norm(sleeve_colours - colour, axis=1) < 12
        known = any(colour is c for c, _ in clothes)
        if not known and sleeve_share[near].sum() > 0.3 and np.linalg.norm(colour - skin) > 18:
            clothes.append((colour, share))
    if not clothes:
        return None
    kept = [k for k in kept if min(np.linalg.norm(k - c) for c, _ in clothes) > 12] or [skin]

    grid = np.linspace(0, 1, LUT_SIZE, dtype=np.float32)
    lattice = np.stack(np.meshgrid(grid, grid, grid, indexing="ij")[::-1], -1)  # [blue, green, red] -> (r, g, b)
    lab_lattice = rgb_to_lab((lattice * 255 + 0.5).astype(np.uint8))
    to_clothes = np.stack([np.linalg.norm(lab_lattice - c, axis=-1) for c, _ in clothes], -1)
    to_kept = np.stack([np.linalg.norm(lab_lattice - k, axis=-1) for k in kept], -1).min(-1)
    share = 1 / (1 + np.exp(np.clip((to_clothes.min(-1) - to_kept) / 2.5, -30, 30)))
    softness = np.exp(-to_clothes / 6)
    softness /= softness.sum(-1, keepdims=True) + 1e-9
    shifts = _new_colours(clothes, rng)
    moved = lab_lattice + softness @ shifts
    moved[..., 0] = moved[..., 0].clip(3, 98)
    table = lattice + share[..., None] * (lab_to_rgb(moved) - lattice)
    return table.clip(0, 1)


def _palette(lab: np.ndarray, most: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """The main colours of lab (N, 3) and their shares: peaks of a coarse histogram, each the mean of its pixels."""
    cells = np.clip(np.floor(lab / 10).astype(np.int64) + 16, 0, 31) @ np.array([1024, 32, 1])
    counts = np.bincount(cells, minlength=32**3)
    sums = np.stack([np.bincount(cells, lab[:, c], 32**3) for c in range(3)], -1)
    used = counts.nonzero()[0]
    counts = counts[used]
    means = sums[used] / counts[:, None]
    order = counts.argsort(kind="stable")[::-1]
    colours: list[np.ndarray] = []
    totals: list[float] = []
    for cell in order:
        if colours:
            gaps = np.linalg.norm(np.stack(colours) - means[cell], axis=1)
            nearest = int(gaps.argmin())
            if gaps[nearest] < 12 or len(colours) == most:
                totals[nearest] += counts[cell]
                continue
        colours.append(means[cell])
        totals.append(counts[cell])
    return np.stack(colours).astype(np.float32), np.array(totals) / counts.sum()


def _new_colours(clothes: list[tuple[np.ndarray, float]], rng: np.random.Generator) -> np.ndarray:
    """A shift in Lab per clothes colour (C, 3). Colours of one hue (the shades of one cloth) share their shift."""
    shifts = np.zeros((len(clothes), 3), np.float32)
    groups: list[list[int]] = []
    for i in sorted(range(len(clothes)), key=lambda i: -clothes[i][1]):
        for group in groups:
            if np.linalg.norm(clothes[i][0][1:] - clothes[group[0]][0][1:]) < 14:
                group.append(i)
                break
        else:
            groups.append([i])
    for group in groups:
        lightness = float(rng.uniform(18, 92))
        angle = float(rng.uniform(0, 2 * np.pi))
        chroma = 0.0 if rng.random() < 0.2 else float(rng.uniform(20, 75)) * (1 - abs(lightness - 55) / 60)
        target = np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])
        shares = np.array([clothes[i][1] for i in group])
        middle = np.average([clothes[i][0] for i in group], axis=0, weights=shares)
        for i in group:
            shifts[i] = target - middle
    return shifts
