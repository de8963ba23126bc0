"""Puts a cut-out person into a place: camera, light, and the blend."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..._random import generator
from .cutout import Cutout
from .places import MARGIN, PLACES, draw_place


@dataclass(frozen=True)
class Shot:
    """How a clip is filmed. zoom: of the person about the middle of the lower edge; pan: travelled over the clip, as
    a share of the width; flip: mirror the person; brightness: factor; warmth: share added to red, taken from blue."""

    zoom: float
    dx: float
    pan: float
    flip: bool
    brightness: float
    warmth: float

    @classmethod
    def random(cls, seed: int) -> Shot:
        rng = generator("shot", seed)
        return cls(
            zoom=float(rng.uniform(0.9, 1.2)),
            dx=float(rng.uniform(-0.05, 0.05)),
            pan=float(rng.uniform(-0.06, 0.06)),
            flip=bool(rng.random() < 0.5),
            brightness=float(rng.uniform(0.87, 1.12)),
            warmth=float(rng.uniform(-0.05, 0.05)),
        )


HEADROOM = 0.02  # of the frame's height, over the head
FOREGROUND_SHARE = 0.7  # of the clips have something in front of the body
BELOW_NECK = 0.05  # of the frame's height that stays visible under the neck


def place_kind(prompt: str, seed: int) -> str:
    """The kind of place that `prompt` names, or one drawn from the seed when it names none."""
    return prompt if prompt in PLACES else list(PLACES)[int(generator("kind", seed).integers(len(PLACES)))]


def compose(cutout: Cutout, prompt: str, seed: int) -> np.ndarray:
    """The person of `cutout` in a new place -> frames (T, H, W, 3) uint8."""
    from PIL import Image

    T, H, W = cutout.alpha.shape
    shot = Shot.random(seed)
    shot = replace(shot, zoom=whole_head(cutout, shot.zoom))
    place = draw_place(place_kind(prompt, seed), H, W, seed)
    table = _light_table(shot)
    front, edge = _foreground(cutout, shot, seed)
    if front is not None:
        cutout = replace(cutout, alpha=only_head_above(cutout, (edge - H) / shot.zoom + H))
    frames = []
    for t in range(T):
        when = t / max(1, T - 1) - 0.5
        left = round((MARGIN + 0.5 * shot.pan * when) * W)
        top = round(MARGIN * H)
        ground = Image.fromarray(place[top : top + H, left : left + W])
        shift = (shot.dx + shot.pan * when) * W
        sign = -1.0 if shot.flip else 1.0
        # Output pixel (x, y) shows input ((x - W/2 - shift) * sign / zoom + W/2, (y - H) / zoom + H).
        scale = 1 / shot.zoom
        matrix = (sign * scale, 0.0, W / 2 - sign * scale * (W / 2 + shift), 0.0, scale, H - scale * H)
        options = {"size": (W, H), "method": Image.Transform.AFFINE, "data": matrix}
        options["resample"] = Image.Resampling.BILINEAR
        person = Image.fromarray(cutout.rgb[t]).transform(**options)
        matte = Image.fromarray(cutout.alpha[t]).transform(**options)
        ground.paste(person, mask=matte)
        if front is not None:
            ground.paste(front, (0, edge))
        frames.append(np.asarray(ground.point(table)))
    return np.stack(frames)


def whole_head(cutout: Cutout, zoom: float) -> float:
    """The zoom, or less where the head would not fit into the frame. Where the film itself cuts the head off, nothing
    is zoomed: the cut stays at the edge, and no more of the head is lost."""
    H = cutout.alpha.shape[1]
    top = float(cutout.top.min())
    if top < HEADROOM * H:
        return 1.0
    return min(zoom, (1 - HEADROOM) * H / (H - top))


def _foreground(cutout: Cutout, shot: Shot, seed: int):
    """A counter, hedge or wall that hides the body in most clips: picture and its upper edge in pixels, or None and 0.

    All clips of one reference show one kind of clothing and one posture. Were the body always in view, a model could
    tell positives from negatives by it and never look at the face.
    """
    from PIL import Image

    rng = generator("foreground", seed)
    _, H, W = cutout.alpha.shape
    neck = (float(cutout.neck.max()) - H) * shot.zoom + H
    edge = round(neck + BELOW_NECK * H)
    if rng.random() >= FOREGROUND_SHARE or not 0 < edge < 0.95 * H:
        return None, 0
    kinds = list(PLACES)
    texture = draw_place(kinds[int(rng.integers(len(kinds)))], H, W, seed + 1)
    front = texture[-(H - edge) :, :W].copy()
    front[: max(1, H // 64)] = (front[: max(1, H // 64)] * 0.4).astype(np.uint8)
    return Image.fromarray(front), edge


def only_head_above(cutout: Cutout, edge: float) -> np.ndarray:
    """alpha (T, H, W) without what is above row `edge` and hangs together with the head only below it: raised hands,
    whose arms the foreground hides, would float in the air."""
    from scipy.ndimage import label

    alpha = cutout.alpha.copy()
    for matte, centre in zip(alpha, cutout.centre, strict=True):
        above = matte[: max(0, round(edge))]
        pieces, count = label(above > 0)
        column = pieces[:, min(max(round(centre), 0), matte.shape[1] - 1)]
        if count > 1 and column.any():
            head = np.bincount(column[column > 0]).argmax()
            above[pieces != head] = 0
    return alpha


def _light_table(shot: Shot) -> list[int]:
    levels = np.arange(256) * shot.brightness
    gains = (1 + shot.warmth, 1.0, 1 - shot.warmth)
    return [int(v) for gain in gains for v in (levels * gain + 0.5).clip(0, 255)]
