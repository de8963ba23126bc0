"""Places drawn from a seed: indoors, outdoors, and plain ones. Each is a picture larger than the frame, so that a
camera may move over it."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..._random import generator

MARGIN = 0.2  # of the frame's size, on every side

Canvas = tuple[ImageDraw.ImageDraw, int, int, np.random.Generator]


def draw_place(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    """A picture (height * (1 + 2 MARGIN), width * (1 + 2 MARGIN), 3) uint8 of a place of this kind."""
    rng = generator("place", kind, seed)
    h, w = round(height * (1 + 2 * MARGIN)), round(width * (1 + 2 * MARGIN))
    image = Image.new("RGB", (w, h))
    PLACES[kind]((ImageDraw.Draw(image), w, h, rng))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3.0)) * w / 256))
    pixels = np.asarray(image).astype(np.float32)
    if rng.random() < 0.5:
        grain = rng.normal(0, float(rng.uniform(1, 6)), (h // 2 + 1, w // 2 + 1, 1)).repeat(2, 0).repeat(2, 1)
        pixels = pixels + grain[:h, :w].astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    return tuple(
        round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, min(1, max(0, saturation)), min(1, max(0, value)))
    )


def _any(rng: np.random.Generator, low: float = 0.3, high: float = 0.95, most: float = 0.8) -> tuple[int, int, int]:
    return _hsv(rng.random(), rng.uniform(0.05, most), rng.uniform(low, high))


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    return tuple(int(min(255, max(0, c * factor))) for c in colour)


def _gradient(canvas: Canvas, top: int, bottom: int, first: tuple, last: tuple) -> None:
    draw, w, _, _ = canvas
    for y in range(top, bottom):
        t = (y - top) / max(1, bottom - top - 1)
        draw.line([(0, y), (w, y)], fill=tuple(round(a + (b - a) * t) for a, b in zip(first, last, strict=True)))


def _sky(canvas: Canvas, bottom: int) -> None:
    _, _, _, rng = canvas
    hue, value = rng.uniform(0.52, 0.62), rng.uniform(0.75, 1.0)
    if rng.random() < 0.25:
        hue, value = rng.uniform(0.02, 0.12), rng.uniform(0.8, 1.0)  # dusk
    _gradient(canvas, 0, bottom, _hsv(hue, rng.uniform(0.25, 0.7), value), _hsv(hue, rng.uniform(0.05, 0.3), value))


def _meadow(canvas: Canvas) -> None:
    draw, w, h, rng = canvas
    horizon = int(h * rng.uniform(0.5, 0.72))
    _sky(canvas, horizon)
    green = rng.uniform(0.2, 0.38)
    for _ in range(rng.integers(0, 4)):
        x, r = rng.uniform(0, w), rng.uniform(0.2, 0.5) * w
        tint = _hsv(green + rng.uniform(-0.05, 0.25), 0.4, rng.uniform(0.4, 0.7))
        draw.ellipse([x - r, horizon - r * 0.4, x + r, horizon + r], fill=tint)
    near = _hsv(green, rng.uniform(0.4, 0.8), rng.uniform(0.35, 0.75))
    _gradient(canvas, horizon, h, near, _shade(near, rng.uniform(0.6, 1.1)))
    for _ in range(rng.integers(2, 9)):
        x, y, r = rng.uniform(0, w), rng.uniform(0.25, 0.6) * h, rng.uniform(0.05, 0.15) * w
        draw.rectangle(
            [x - r * 0.15, y, x + r * 0.15, horizon + 0.1 * h], fill=_hsv(0.07, 0.5, rng.uniform(0.2, 0.45))
        )
        leaf = _hsv(green + rng.uniform(-0.06, 0.06), 0.7, rng.uniform(0.25, 0.65))
        for _ in range(4):
            dx, dy = rng.uniform(-0.5, 0.5, 2) * r
            draw.ellipse([x + dx - r * 0.8, y + dy - r * 0.8, x + dx + r * 0.8, y + dy + r * 0.8], fill=leaf)


def _shore(canvas: Canvas) -> None:
    draw, w, h, rng = canvas
    horizon, sand = int(h * rng.uniform(0.38, 0.55)), int(h * rng.uniform(0.6, 0.8))
    _sky(canvas, horizon)
    sea = _hsv(rng.uniform(0.48, 0.62), rng.uniform(0.4, 0.85), rng.uniform(0.4, 0.85))
    _gradient(canvas, horizon, sand, _shade(sea, 0.75), sea)
    for _ in range(rng.integers(5, 25)):
        x, y = rng.uniform(0, w), rng.uniform(horizon, sand)
        draw.line([(x, y), (x + rng.uniform(0.03, 0.15) * w, y)], fill=_shade(sea, 1.4), width=max(1, w // 150))
    dune = _hsv(rng.uniform(0.08, 0.14), rng.uniform(0.2, 0.5), rng.uniform(0.7, 0.95))
    _gradient(canvas, sand, h, dune, _shade(dune, 0.85))
    x, y, r = rng.uniform(0, w), rng.uniform(0.1, 0.3) * h, rng.uniform(0.04, 0.09) * w
    draw.ellipse([x - r, y - r, x + r, y + r], fill=_hsv(0.14, rng.uniform(0.1, 0.6), 1.0))


def _peaks(canvas: Canvas) -> None:
    draw, w, h, rng = canvas
    _sky(canvas, int(h * 0.75))
    for layer in range(rng.integers(2, 4)):
        base, tint = (
            int(h * (0.6 + 0.1 * layer)),
            _hsv(rng.uniform(0.5, 0.75), rng.uniform(0.1, 0.4), 0.45 + 0.12 * layer),
        )
        x = -0.2 * w
        while x < w:
            width, top = rng.uniform(0.25, 0.6) * w, base - rng.uniform(0.15, 0.5) * h
            draw.polygon(
                [(x, base), (x + width / 2, top), (x + width, base)], fill=_shade(tint, rng.uniform(0.85, 1.1))
            )
            x += width * rng.uniform(0.4, 0.8)
        draw.rectangle([0, base, w, h], fill=tint)
    ground = _hsv(rng.uniform(0.2, 0.65), rng.uniform(0.02, 0.3), rng.uniform(0.6, 1.0))
    draw.rectangle([0, int(h * 0.78), w, h], fill=ground)


def _town(canvas: Canvas) -> None:
    draw, w, h, rng = canvas
    night = rng.random() < 0.4
    ground = int(h * rng.uniform(0.72, 0.88))
    if night:
        _gradient(canvas, 0, ground, _hsv(0.65, 0.7, 0.15), _hsv(0.7, 0.5, 0.35))
    else:
        _sky(canvas, ground)
    x = -0.05 * w
    while x < w:
        width, top = rng.uniform(0.1, 0.24) * w, rng.uniform(0.08, 0.5) * h
        wall = _hsv(rng.random(), rng.uniform(0.1, 0.5), rng.uniform(0.15, 0.35) if night else rng.uniform(0.45, 0.9))
        draw.rectangle([x, top, x + width, ground], fill=wall)
        lit, dark = _hsv(0.13, rng.uniform(0.2, 0.6), 1.0), _shade(wall, 0.7)
        step = width / rng.integers(2, 5)
        for y in np.arange(top + step * 0.4, ground - step * 0.5, step * rng.uniform(0.9, 1.4)):
            for column in np.arange(x + step * 0.25, x + width - step * 0.3, step):
                pane = lit if rng.random() < (0.6 if night else 0.3) else dark
                draw.rectangle([column, y, column + step * 0.5, y + step * 0.55], fill=pane)
        x += width * rng.uniform(0.95, 1.2)
    draw.rectangle([0, ground, w, h], fill=_hsv(rng.random(), 0.08, 0.2 if night else rng.uniform(0.35, 0.6)))


def _room(canvas: Canvas) -> None:
    draw, w, h, rng = canvas
    floor = int(h * rng.uniform(0.68, 0.88))
    wall = _any(rng, 0.45, 0.98, 0.5)
    _gradient(canvas, 0, floor, wall, _shade(wall, rng.uniform(0.75, 1.0)))
    if rng.random() < 0.4:
        step = rng.uniform(0.04, 0.12) * w
        for x in np.arange(0, w, step):
            draw.line([(x, 0), (x, floor)], fill=_shade(wall, 0.88), width=max(1, int(step * rng.uniform(0.05, 0.5))))
    draw.rectangle([0, floor, w, h], fill=_hsv(rng.uniform(0.04, 0.12), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.7)))
    for _ in range(rng.integers(1, 4)):  # windows, pictures, cupboards
        x, y = rng.uniform(0, 0.85) * w, rng.uniform(0.05, 0.4) * h
        width, height = rng.uniform(0.12, 0.35) * w, rng.uniform(0.12, 0.35) * h
        draw.rectangle(
            [x, y, x + width, y + height], fill=_any(rng), outline=_any(rng, 0.1, 0.9), width=max(1, w // 80)
        )
        if rng.random() < 0.5:
            draw.line(
                [(x + width / 2, y), (x + width / 2, y + height)], fill=_any(rng, 0.1, 0.9), width=max(1, w // 120)
            )
    for _ in range(rng.integers(0, 3)):  # furniture
        x, width, top = rng.uniform(-0.1, 0.9) * w, rng.uniform(0.15, 0.4) * w, rng.uniform(0.5, 0.75) * h
        draw.rectangle([x, top, x + width, max(floor, top) + 0.05 * h], fill=_any(rng, 0.2, 0.8))


def _shelves(canvas: Canvas) -> None:
    draw, w, h, rng = canvas
    board = _hsv(rng.uniform(0.03, 0.12), rng.uniform(0.2, 0.7), rng.uniform(0.25, 0.7))
    draw.rectangle([0, 0, w, h], fill=_shade(board, 0.6))
    pitch = rng.uniform(0.14, 0.26) * h
    for shelf in np.arange(pitch * rng.uniform(0.3, 1), h + pitch, pitch):
        x = 0.0
        while x < w:
            width, height = rng.uniform(0.012, 0.05) * w, rng.uniform(0.5, 0.9) * pitch
            draw.rectangle([x, shelf - height, x + width, shelf], fill=_any(rng, 0.2, 0.9))
            x += width * rng.choice([1.1, 1.1, 1.1, 3.0])
        draw.rectangle([0, shelf, w, shelf + 0.03 * h], fill=board)


def _studio(canvas: Canvas) -> None:
    _, _, h, rng = canvas
    colour = _any(rng, 0.15, 0.98, 0.9)
    _gradient(canvas, 0, h, colour, _shade(colour, rng.uniform(0.5, 1.2)))


def _lights(canvas: Canvas) -> None:
    draw, w, h, rng = canvas
    dark = _any(rng, 0.05, 0.4)
    _gradient(canvas, 0, h, dark, _shade(dark, rng.uniform(0.5, 1.5)))
    for _ in range(rng.integers(10, 40)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.01, 0.07) * w
        draw.ellipse([x - r, y - r, x + r, y + r], fill=_any(rng, 0.5, 1.0))


def _tiles(canvas: Canvas) -> None:
    draw, w, h, rng = canvas
    first, second = _any(rng, 0.3, 0.98), _any(rng, 0.3, 0.98)
    step = rng.uniform(0.05, 0.16) * w
    for row in range(int(h / step) + 1):
        for column in range(int(w / step) + 1):
            box = [column * step, row * step, (column + 1) * step, (row + 1) * step]
            tint = first if (row + column) % 2 else second
            draw.rectangle(box, fill=_shade(tint, rng.uniform(0.92, 1.08)))


PLACES: dict[str, Callable[[Canvas], None]] = {
    "a meadow with trees": _meadow,
    "the shore": _shore,
    "the mountains": _peaks,
    "a town": _town,
    "a room": _room,
    "a room full of shelves": _shelves,
    "a studio": _studio,
    "a place with coloured lights": _lights,
    "a tiled wall": _tiles,
}
PLAIN_PLACES = ("a studio",)
