"""Draws the cartoon world: one person, a bust shot, doing something somewhere.

Shapes are given in units of the frame side (figure, props, places) or of half a head's width (head), so that any
size works. A picture is drawn at twice its size and box-averaged. The head is drawn once per pose and pasted, since
it carries most of the detail; places are drawn once per variant.
"""

from __future__ import annotations

import functools
import math
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from .cast import Camera, Identity, Light, Scene

Color = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 2
CYCLES_PER_CLIP = 2
OUTLINE = 0.017  # of the frame side
HEAD_X, HEAD_Y, HEAD_UNIT = 0.5, 0.46, 0.25
NECK_PIVOT_Y = 1.0  # in head units: the head tilts about the chin
SPRITE_LEFT, SPRITE_TOP, SPRITE_WIDTH, SPRITE_HEIGHT = -1.75, -1.85, 3.5, 3.65  # in head units
PLACE_MARGIN = 0.2
PLACE_VARIANTS = 8
FAR_PARALLAX = 0.6

INK: Color = (34, 28, 40)
WHITE: Color = (250, 250, 248)
SKIN: dict[str, Color] = {
    "pale": (255, 226, 208),
    "golden": (250, 206, 84),
    "tan": (224, 156, 106),
    "brown": (172, 106, 66),
    "dark": (112, 68, 54),
}
HAIR: dict[str, Color] = {
    "black": (30, 28, 38),
    "brown": (122, 70, 32),
    "blonde": (250, 222, 120),
    "red": (216, 70, 28),
    "grey": (182, 186, 194),
    "blue": (52, 112, 226),
}
EYES: dict[str, Color] = {
    "brown": (104, 54, 22),
    "blue": (40, 128, 240),
    "green": (40, 168, 70),
    "amber": (246, 164, 20),
}
CLOTH: dict[str, Color] = {
    "red": (214, 44, 48),
    "orange": (244, 140, 34),
    "yellow": (248, 218, 62),
    "green": (58, 156, 72),
    "blue": (46, 96, 204),
    "purple": (138, 70, 174),
    "white": (242, 242, 240),
    "black": (52, 52, 60),
}
LENS_TINT: Color = (124, 50, 150)
MOUTH: Color = (150, 36, 52)


def mix(first: Color, second: Color, share: float) -> Color:
    """`first` with a `share` in [0, 1] of `second`."""
    r, g, b = (round(a + (z - a) * share) for a, z in zip(first, second, strict=True))
    return r, g, b


class Pen:
    """Draws on `image` in coordinates (x, y) that land on pixel (x * scale + left, y * scale + top)."""

    def __init__(self, image: Image.Image, scale: float, left: float, top: float, outline_px: float) -> None:
        self.draw = ImageDraw.Draw(image)
        self.scale, self.left, self.top = scale, left, top
        self.outline = max(1, round(outline_px))

    def moved(self, dx: float, dy: float) -> Pen:
        """The same pen with its origin moved by (dx, dy)."""
        other = object.__new__(Pen)
        other.draw, other.scale, other.outline = self.draw, self.scale, self.outline
        other.left, other.top = self.left + dx * self.scale, self.top + dy * self.scale
        return other

    def _px(self, points: Iterable[Point]) -> list[Point]:
        scale, left, top = self.scale, self.left, self.top
        return [(x * scale + left, y * scale + top) for x, y in points]

    def polygon(self, points: Iterable[Point], fill: Color, outline: Color | None = INK) -> None:
        pixels = self._px(points)
        self.draw.polygon(pixels, fill=fill)
        if outline is not None:
            self.draw.line([*pixels, pixels[0], pixels[1]], fill=outline, width=self.outline, joint=None)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color, outline: Color | None = INK) -> None:
        scale, left, top = self.scale, self.left, self.top
        box = ((x - rx) * scale + left, (y - ry) * scale + top, (x + rx) * scale + left, (y + ry) * scale + top)
        self.draw.ellipse(box, fill=fill, outline=outline, width=self.outline if outline is not None else 0)

    def box(
        self, x: float, y: float, rx: float, ry: float, fill: Color, outline: Color | None = INK, radius: float = 0.0
    ) -> None:
        """A rectangle of half sides (rx, ry) about (x, y)."""
        scale, left, top = self.scale, self.left, self.top
        corners = ((x - rx) * scale + left, (y - ry) * scale + top, (x + rx) * scale + left, (y + ry) * scale + top)
        width = self.outline if outline is not None else 0
        if radius:
            self.draw.rounded_rectangle(corners, radius * scale, fill=fill, outline=outline, width=width)
        else:
            self.draw.rectangle(corners, fill=fill, outline=outline, width=width)

    def stroke(self, points: Iterable[Point], color: Color, width: float) -> None:
        """A polyline of `width` with round joints and ends."""
        pixels = self._px(points)
        thickness = max(1, round(width * self.scale))
        self.draw.line(pixels, fill=color, width=thickness)
        radius = thickness / 2 - 0.5
        if radius >= 1:
            for x, y in pixels:
                self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


# ---------------------------------------------------------------------------------------------------------------
# The head
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadPose:
    """`turn`, `nod` in [-1, 1] (right, down), `tilt` in degrees, and whether the mouth is open."""

    turn: float = 0.0
    nod: float = 0.0
    tilt: float = 0.0
    mouth_open: bool = False


@dataclass(frozen=True)
class FaceShape:
    """A superellipse of half axes (rx, ry) whose lower half narrows by the share `taper` towards the chin."""

    rx: float
    ry: float
    power: float
    taper: float

    def at(self, angle: float, grow: float = 1.0) -> Point:
        """The outline's point at `angle` in degrees (0: right, 90: chin), `grow` times as far from the centre."""
        return _outline_point(self, angle, grow)

    def arc(self, start: int, stop: int, step: int = 9, grow: float = 1.0) -> list[Point]:
        """Points from `start` to `stop` degrees, about `step` apart."""
        count = max(1, abs(stop - start) // step)
        return [self.at(start + (stop - start) * index / count, grow) for index in range(count + 1)]


@functools.lru_cache(maxsize=4096)
def _outline_point(shape: FaceShape, angle: float, grow: float) -> Point:
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = math.copysign(abs(c) ** (2 / shape.power), c) * shape.rx * grow
    y = math.copysign(abs(s) ** (2 / shape.power), s) * shape.ry * grow
    return x * (1 - shape.taper * max(0.0, y / shape.ry)), y


FACE_SHAPES = {
    "round": FaceShape(rx=1.0, ry=0.98, power=2.0, taper=0.0),
    "oval": FaceShape(rx=0.88, ry=1.06, power=2.0, taper=0.34),
    "square": FaceShape(rx=0.92, ry=0.96, power=5.0, taper=0.0),
    "long": FaceShape(rx=0.7, ry=1.14, power=3.0, taper=0.0),
}


@functools.lru_cache(maxsize=64)
def _head_sprite(identity: Identity, pose: HeadPose, unit_px: float, outline_px: float) -> Image.Image:
    """The head as RGBA on a transparent ground; its centre lies at (-SPRITE_LEFT, -SPRITE_TOP) * unit_px."""
    size = (round(SPRITE_WIDTH * unit_px), round(SPRITE_HEIGHT * unit_px))
    if pose.tilt:
        upright = HeadPose(pose.turn, pose.nod, 0.0, pose.mouth_open)
        pivot = (-SPRITE_LEFT * unit_px, (NECK_PIVOT_Y - SPRITE_TOP) * unit_px)
        sprite = _head_sprite(identity, upright, unit_px, outline_px)
        return sprite.rotate(pose.tilt, Image.Resampling.NEAREST, center=pivot)
    sprite = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = Pen(sprite, unit_px, -SPRITE_LEFT * unit_px, -SPRITE_TOP * unit_px, outline_px)
    _draw_head(pen, identity, pose)
    return sprite


def _draw_head(pen: Pen, identity: Identity, pose: HeadPose) -> None:
    shape = FACE_SHAPES[identity.face_shape]
    skin, hair = SKIN[identity.skin], HAIR[identity.hair_color]
    back = pen.moved(-0.08 * pose.turn, -0.06 * pose.nod)
    front = pen.moved(0.1 * pose.turn, 0.1 * pose.nod)
    features = pen.moved(0.24 * pose.turn, 0.2 * pose.nod)
    HAIR_BACK[identity.hair_style](back, shape, hair)
    pen.box(0.0, shape.ry + 0.06, 0.3, 0.28, mix(skin, INK, 0.18), radius=0.2)
    _draw_ears(back, identity.ears, shape, skin)
    pen.polygon(shape.arc(0, 351), skin)
    _draw_cheeks(features, skin)
    _draw_beard(features, identity.beard, shape, hair)
    _draw_mouth(features, pose.mouth_open)
    HAIR_FRONT[identity.hair_style](front, shape, hair)
    _draw_lenses(features, identity.glasses, skin)
    _draw_eyes(features, identity)
    _draw_frames(features, identity.glasses, shape)
    _draw_brows(features, identity.brows, hair)
    _draw_nose(features, identity.nose, skin)


def _draw_ears(pen: Pen, ears: str, shape: FaceShape, skin: Color) -> None:
    inner = mix(skin, (190, 60, 60), 0.4)
    for side in (-1, 1):
        edge = side * shape.rx
        if ears == "small":
            pen.ellipse(edge + side * 0.06, 0.06, 0.15, 0.18, skin)
        elif ears == "large":
            pen.ellipse(edge + side * 0.2, -0.04, 0.3, 0.42, skin)
            pen.ellipse(edge + side * 0.24, -0.04, 0.14, 0.24, inner, None)
        else:
            pen.polygon([(edge - side * 0.1, 0.3), (edge - side * 0.1, -0.24), (edge + side * 0.52, -0.62)], skin)
            pen.polygon([(edge, 0.12), (edge, -0.16), (edge + side * 0.34, -0.44)], inner, None)


def _draw_cheeks(pen: Pen, skin: Color) -> None:
    blush = mix(skin, (240, 70, 80), 0.22)
    for side in (-1, 1):
        pen.ellipse(side * 0.5, 0.36, 0.15, 0.1, blush, None)


def _draw_beard(pen: Pen, beard: str, shape: FaceShape, hair: Color) -> None:
    if beard == "full":
        rim = shape.arc(2, 178, grow=1.1)
        inner = [(-0.62 * shape.rx, 0.4), (-0.34, 0.38), (0.0, 0.44), (0.34, 0.38), (0.62 * shape.rx, 0.4)]
        pen.polygon(rim + inner, hair)
    elif beard == "goatee":
        chin = shape.ry
        pen.polygon([(-0.36, 0.76), (0.36, 0.76), (0.3, chin), (0.0, chin + 0.34), (-0.3, chin)], hair)
    elif beard == "moustache":
        side = [(0.0, 0.4), (0.36, 0.36), (0.74, 0.5), (0.62, 0.68), (0.3, 0.66), (0.0, 0.56)]
        pen.polygon([*side, *((-x, y) for x, y in reversed(side))], hair)


def _draw_mouth(pen: Pen, is_open: bool) -> None:
    if is_open:
        pen.ellipse(0.0, 0.67, 0.17, 0.13, MOUTH)
    else:
        pen.polygon([(-0.24, 0.61), (0.24, 0.61), (0.13, 0.72), (-0.13, 0.72)], MOUTH)


def _draw_lenses(pen: Pen, glasses: str, skin: Color) -> None:
    clear = mix(skin, (224, 244, 255), 0.6)
    for side in (-1, 1):
        if glasses == "round":
            pen.ellipse(side * 0.41, -0.06, 0.36, 0.36, clear)
        elif glasses == "square":
            pen.box(side * 0.42, -0.05, 0.36, 0.31, clear)
        elif glasses == "tinted":
            pen.box(side * 0.43, -0.03, 0.38, 0.33, LENS_TINT, radius=0.14)


def _draw_frames(pen: Pen, glasses: str, shape: FaceShape) -> None:
    if glasses == "none":
        return
    pen.stroke([(-0.1, -0.12), (0.1, -0.12)], INK, 0.09)
    for side in (-1, 1):
        pen.stroke([(side * 0.74, -0.1), (side * max(shape.rx, 0.74), -0.12)], INK, 0.09)
        if glasses == "square":
            pen.stroke([(side * 0.06, -0.36), (side * 0.78, -0.36)], INK, 0.13)


def _draw_eyes(pen: Pen, identity: Identity) -> None:
    tint = 0.45 if identity.glasses == "tinted" else 0.0
    white = mix(WHITE, LENS_TINT, tint)
    iris = mix(EYES[identity.eye_color], LENS_TINT, 0.5 * tint)
    for side in (-1, 1):
        x = side * 0.4
        pen.ellipse(x, -0.05, 0.25, 0.28, white)
        pen.ellipse(x - side * 0.03, -0.03, 0.185, 0.205, iris, None)
        pen.ellipse(x - side * 0.03, -0.03, 0.075, 0.085, INK, None)


def _draw_brows(pen: Pen, brows: str, hair: Color) -> None:
    border = 1.4 * pen.outline / pen.scale
    for line, width in _brow_lines(brows):
        if brows == "thin":
            pen.stroke(line, mix(hair, INK, 0.45), width)
        else:
            pen.stroke(line, INK, width + border)
            pen.stroke(line, hair, width)


def _brow_lines(brows: str) -> list[tuple[list[Point], float]]:
    """The brows as polylines with their widths."""
    if brows == "joined":
        return [([(-0.66, -0.6), (0.0, -0.42), (0.66, -0.6)], 0.15)]
    line, width = {
        "thin": ([(0.22, -0.48), (0.62, -0.48)], 0.065),
        "thick": ([(0.26, -0.53), (0.64, -0.53)], 0.21),
        "arched": ([(0.16, -0.44), (0.42, -0.76), (0.7, -0.48)], 0.1),
    }[brows]
    return [([(side * x, y) for x, y in line], width) for side in (-1, 1)]


def _draw_nose(pen: Pen, nose: str, skin: Color) -> None:
    if nose == "small":
        pen.ellipse(0.0, 0.28, 0.085, 0.065, mix(skin, INK, 0.45), None)
    elif nose == "round":
        pen.ellipse(0.0, 0.26, 0.26, 0.23, mix(skin, (226, 40, 50), 0.5))
        pen.ellipse(-0.08, 0.18, 0.07, 0.05, mix(skin, WHITE, 0.6), None)
    else:
        side = [(0.07, -0.14), (0.13, 0.2), (0.24, 0.4), (0.13, 0.54)]
        pen.polygon([*side, *((-x, y) for x, y in reversed(side))], mix(skin, (210, 90, 60), 0.35))


def _cap(shape: FaceShape, side: int, hairline: float, grow: float = 1.08, peak: float = 0.0) -> list[Point]:
    """Hair on the skull: the outline above `side` degrees over the ears, closed by a hairline at `hairline` * ry."""
    outer = shape.arc(180 + side, 360 - side, grow=grow)
    y, rx = hairline * shape.ry, shape.rx
    low = shape.at(-side)[1]
    return [*outer, (0.84 * rx, low), (0.66 * rx, y), (0.0, y - peak), (-0.66 * rx, y), (-0.84 * rx, low)]


def _shine(pen: Pen, shape: FaceShape, hair: Color) -> None:
    pen.stroke(shape.arc(222, 252, grow=0.93), mix(hair, WHITE, 0.4), 0.07)


def _no_hair(pen: Pen, shape: FaceShape, hair: Color) -> None:
    """This style has nothing in this layer."""


def _bald_back(pen: Pen, shape: FaceShape, hair: Color) -> None:
    for side in (-1, 1):
        pen.ellipse(side * (shape.rx + 0.02), -0.06, 0.24, 0.4, hair)


def _bald_front(pen: Pen, shape: FaceShape, hair: Color) -> None:
    for side in (-1, 1):
        rx = side * shape.rx
        pen.polygon([(rx * 1.04, 0.06), (rx * 1.12, -0.2), (rx, -0.56), (rx * 0.74, -0.56), (rx * 0.84, -0.2)], hair)
    pen.stroke(shape.arc(226, 256, grow=0.84), WHITE, 0.09)


def _short_front(pen: Pen, shape: FaceShape, hair: Color) -> None:
    pen.polygon(_cap(shape, 14, -0.74, grow=1.12), hair)
    _shine(pen, shape, hair)


def _spiky_front(pen: Pen, shape: FaceShape, hair: Color) -> None:
    cap = _cap(shape, 16, -0.74, grow=1.04)
    outer = [shape.at(196 + 148 * index / 14, 1.04 if index % 2 == 0 else 1.42) for index in range(15)]
    pen.polygon(outer + cap[-5:], hair)


def _bob_back(pen: Pen, shape: FaceShape, hair: Color) -> None:
    wide = shape.rx + 0.3
    top = [(x * wide / shape.rx, y) for x, y in shape.arc(180, 360, grow=1.12)]
    pen.polygon([*top, (wide + 0.12, 0.74), (wide - 0.1, 0.9), (-wide + 0.1, 0.9), (-wide - 0.12, 0.74)], hair)


def _bob_front(pen: Pen, shape: FaceShape, hair: Color) -> None:
    y = -0.74 * shape.ry
    pen.polygon([*shape.arc(204, 336, grow=1.1), (0.9 * shape.rx, y), (-0.9 * shape.rx, y)], hair)
    _shine(pen, shape, hair)


def _long_back(pen: Pen, shape: FaceShape, hair: Color) -> None:
    wide = shape.rx + 0.18
    top = [(x * wide / shape.rx, y) for x, y in shape.arc(180, 360, grow=1.12)]
    pen.polygon([*top, (wide + 0.16, 1.3), (wide - 0.05, 1.72), (-wide + 0.05, 1.72), (-wide - 0.16, 1.3)], hair)


def _long_front(pen: Pen, shape: FaceShape, hair: Color) -> None:
    pen.polygon(_cap(shape, 4, -0.62, peak=0.26), hair)
    _shine(pen, shape, hair)


def _bun_back(pen: Pen, shape: FaceShape, hair: Color) -> None:
    pen.ellipse(0.0, -shape.ry - 0.24, 0.4, 0.36, hair)
    pen.ellipse(-0.1, -shape.ry - 0.36, 0.12, 0.08, mix(hair, WHITE, 0.4), None)


def _bun_front(pen: Pen, shape: FaceShape, hair: Color) -> None:
    pen.polygon(_cap(shape, 22, -0.76, grow=1.06, peak=0.06), hair)


def _curls(pen: Pen, centres: Sequence[Point], radius: float, hair: Color) -> None:
    for x, y in centres:
        pen.ellipse(x, y, radius, radius, INK, None)
    border = pen.outline / pen.scale
    for x, y in centres:
        pen.ellipse(x, y, radius - border, radius - border, hair, None)


def _curly_back(pen: Pen, shape: FaceShape, hair: Color) -> None:
    _curls(pen, shape.arc(160, 380, step=22, grow=1.14), 0.34, hair)


def _curly_front(pen: Pen, shape: FaceShape, hair: Color) -> None:
    _curls(pen, shape.arc(205, 335, step=21, grow=0.94), 0.24, hair)
    for x, y in shape.arc(215, 325, step=27, grow=1.08):
        pen.ellipse(x - 0.05, y - 0.05, 0.07, 0.06, mix(hair, WHITE, 0.4), None)


def _mohawk_front(pen: Pen, shape: FaceShape, hair: Color) -> None:
    ry = shape.ry
    crest = [(-0.3, -ry - 0.12), (-0.38, -ry - 0.42), (-0.16, -ry - 0.3), (0.0, -ry - 0.54), (0.16, -ry - 0.3)]
    pen.polygon([(-0.2, -0.66 * ry), *crest, (0.38, -ry - 0.42), (0.3, -ry - 0.12), (0.2, -0.66 * ry)], hair)


HairLayer = Callable[[Pen, FaceShape, Color], None]
HAIR_BACK: dict[str, HairLayer] = {
    "bald": _bald_back, "short": _no_hair, "spiky": _no_hair, "mohawk": _no_hair,
    "bob": _bob_back, "long": _long_back, "bun": _bun_back, "curly": _curly_back,
}  # fmt: skip
HAIR_FRONT: dict[str, HairLayer] = {
    "bald": _bald_front, "short": _short_front, "spiky": _spiky_front, "mohawk": _mohawk_front,
    "bob": _bob_front, "long": _long_front, "bun": _bun_front, "curly": _curly_front,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Motion
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """Where everything is at one moment; hands in frame units, "left" as the viewer sees it."""

    left: Point = (0.13, 1.12)
    right: Point = (0.87, 1.12)
    dx: float = 0.0
    dy: float = 0.0
    head: HeadPose = HeadPose()
    head_dx: float = 0.0
    ball: Point | None = None


def _waving(s: float, c: float) -> Pose:
    return Pose(right=(0.82 + 0.085 * s, 0.36 + 0.04 * abs(s)), head=HeadPose(tilt=-3.0))


def _nodding(s: float, c: float) -> Pose:
    return Pose(head=HeadPose(nod=s))


def _shaking_head(s: float, c: float) -> Pose:
    return Pose(head=HeadPose(turn=s))


def _jumping(s: float, c: float) -> Pose:
    lift = 0.5 - 0.5 * c
    reach = 0.86 - 0.3 * lift
    return Pose(left=(0.1, reach), right=(0.9, reach), dy=0.07 - 0.14 * lift)


def _dancing(s: float, c: float) -> Pose:
    return Pose(left=(0.1, 0.66 + 0.2 * s), right=(0.9, 0.66 - 0.2 * s), dx=0.05 * s, head=HeadPose(tilt=-9.0 * s))


def _clapping(s: float, c: float) -> Pose:
    gap = 0.01 + 0.12 * (1 + s)
    return Pose(left=(0.46 - gap, 0.87), right=(0.54 + gap, 0.87))


def _reading(s: float, c: float) -> Pose:
    return Pose(left=(0.31, 0.93), right=(0.69, 0.93), head=HeadPose(nod=0.45, turn=0.3 * s))


def _drinking(s: float, c: float) -> Pose:
    lift = min(1.0, max(0.0, 0.5 - 0.8 * c))
    return Pose(right=(0.68 - 0.06 * lift, 0.96 - 0.28 * lift))


def _phoning(s: float, c: float) -> Pose:
    return Pose(right=(0.81, 0.54), head=HeadPose(turn=0.3 * c, tilt=-5.0 + 2.0 * s, mouth_open=s > 0))


def _playing_ball(s: float, c: float) -> Pose:
    height = 0.5 - 0.5 * c
    return Pose(left=(0.14, 0.86 + 0.05 * height), ball=(0.13, 0.77 - 0.52 * height))


MOTIONS: dict[str, Callable[[float, float], Pose]] = {
    "waving": _waving,
    "nodding": _nodding,
    "shaking their head": _shaking_head,
    "jumping": _jumping,
    "dancing": _dancing,
    "clapping": _clapping,
    "reading a book": _reading,
    "drinking from a cup": _drinking,
    "talking on the phone": _phoning,
    "playing with a ball": _playing_ball,
}


def _pose_at(scene: Scene, t: float) -> Pose:
    angle = 2 * math.pi * (CYCLES_PER_CLIP * t + scene.phase)
    return MOTIONS[scene.action](math.sin(angle), math.cos(angle))


# ---------------------------------------------------------------------------------------------------------------
# The body and what it holds
# ---------------------------------------------------------------------------------------------------------------

TORSO: tuple[Point, ...] = (
    (0.4, 0.735), (0.28, 0.775), (0.21, 0.85), (0.2, 1.4), (0.8, 1.4), (0.79, 0.85), (0.72, 0.775), (0.6, 0.735),
)  # fmt: skip
SHOULDERS: tuple[Point, Point] = ((0.265, 0.85), (0.735, 0.85))
ARM_WIDTH = 0.095


def _draw_torso(pen: Pen, garment: str, color: Color, skin: Color) -> None:
    dark = mix(color, INK, 0.35) if color != CLOTH["black"] else (110, 110, 124)
    if garment == "dress":
        pen.polygon(TORSO, skin)
        pen.polygon([(0.25, 1.4), (0.24, 0.88), (0.31, 0.76), (0.38, 0.75), (0.42, 0.87), (0.58, 0.87), (0.62, 0.75),
                     (0.69, 0.76), (0.76, 0.88), (0.75, 1.4)], color)  # fmt: skip
        return
    pen.polygon(TORSO, color)
    if garment == "striped shirt":
        for y in (0.83, 0.91, 0.99):
            pen.box(0.5, y, 0.28, 0.017, _stripe(color), None)
    elif garment == "jacket":
        inside = WHITE if color != CLOTH["white"] else (90, 150, 170)
        pen.polygon([(0.41, 0.73), (0.59, 0.73), (0.6, 1.4), (0.4, 1.4)], inside)
        for side in (-1, 1):
            pen.polygon([(0.5 + side * 0.1, 0.72), (0.5 + side * 0.21, 0.79), (0.5 + side * 0.1, 0.93)], dark)
    elif garment == "hoodie":
        pen.ellipse(0.5, 0.775, 0.21, 0.08, dark)
        for side in (-1, 1):
            pen.stroke([(0.5 + side * 0.06, 0.83), (0.5 + side * 0.065, 0.96)], _stripe(color), 0.022)
    else:
        pen.ellipse(0.5, 0.745, 0.13, 0.06, dark)


def _draw_arm(pen: Pen, side: int, hand: Point, garment: str, color: Color, skin: Color) -> None:
    """`side` -1 is the viewer's left. The elbow lies outwards and below the middle of shoulder and hand."""
    shoulder = SHOULDERS[0 if side < 0 else 1]
    elbow = ((shoulder[0] + hand[0]) / 2 + side * 0.05, (shoulder[1] + hand[1]) / 2 + 0.05)
    sleeve_end = {"dress": shoulder, "t-shirt": _between(shoulder, elbow, 0.4)}.get(garment, hand)
    pen.stroke([shoulder, elbow, hand], INK, ARM_WIDTH + 2 * pen.outline / pen.scale)
    pen.stroke([shoulder, elbow, hand], skin, ARM_WIDTH)
    if garment == "t-shirt":
        pen.stroke([shoulder, sleeve_end], INK, ARM_WIDTH + 3 * pen.outline / pen.scale)
        pen.stroke([shoulder, sleeve_end], color, ARM_WIDTH + pen.outline / pen.scale)
    elif garment != "dress":
        pen.stroke([shoulder, elbow, sleeve_end], color, ARM_WIDTH)
    if garment == "striped shirt":
        for share in (0.3, 0.8):
            pen.ellipse(*_between(shoulder, elbow, share), 0.046, 0.018, _stripe(color), None)
    pen.ellipse(hand[0], hand[1], 0.06, 0.06, skin)


def _between(start: Point, stop: Point, share: float) -> Point:
    return start[0] + (stop[0] - start[0]) * share, start[1] + (stop[1] - start[1]) * share


def _stripe(color: Color) -> Color:
    """White, or ink on light cloth."""
    return WHITE if sum(color) < 600 else INK


def _draw_book(pen: Pen, color: Color) -> None:
    for side in (-1, 1):
        outer = 0.5 + side * 0.2
        pen.polygon([(0.5, 0.85), (outer, 0.82), (outer, 1.06), (0.5, 1.1)], color)
    pen.box(0.5, 0.96, 0.012, 0.12, WHITE, None)


def _draw_cup(pen: Pen, x: float, y: float, color: Color) -> None:
    pen.ellipse(x + 0.06, y, 0.045, 0.04, color)
    pen.polygon([(x - 0.075, y - 0.08), (x + 0.075, y - 0.08), (x + 0.055, y + 0.08), (x - 0.055, y + 0.08)], color)


def _draw_phone(pen: Pen, x: float, y: float) -> None:
    pen.box(x, y, 0.045, 0.11, (40, 44, 54), radius=0.02)
    pen.box(x, y - 0.01, 0.024, 0.07, (120, 220, 240), None)


def _draw_ball(pen: Pen, x: float, y: float, color: Color) -> None:
    pen.ellipse(x, y, 0.085, 0.085, color)
    pen.stroke([(x - 0.06, y), (x + 0.06, y)], WHITE, 0.03)


PROP_COLORS: tuple[Color, ...] = ((226, 48, 60), (36, 160, 120), (250, 190, 30), (60, 90, 220))


def _draw_figure(image: Image.Image, identity: Identity, scene: Scene, t: float) -> None:
    """The person and the prop, on a square `image` of the supersampled size."""
    side, camera = image.width, scene.camera
    pose = _pose_at(scene, t)
    left, top = _camera_offset(camera, t, side)
    scale = side * camera.zoom
    pen = Pen(image, scale, left, top, OUTLINE * scale)
    body = pen.moved(pose.dx * 0.5, pose.dy)
    skin, cloth = SKIN[identity.skin], CLOTH[scene.garment_color]
    prop = PROP_COLORS[scene.seed % len(PROP_COLORS)]
    _draw_torso(body, scene.garment, cloth, skin)
    unit = HEAD_UNIT * scale
    sprite = _head_sprite(identity, _rounded(pose.head), unit, pen.outline)
    x = (HEAD_X + pose.dx) * scale + left + SPRITE_LEFT * unit
    y = (HEAD_Y + pose.dy + 0.015 * pose.head.nod) * scale + top + SPRITE_TOP * unit
    image.paste(sprite, (round(x), round(y)), sprite)
    if scene.action == "reading a book":
        _draw_book(body, prop)
    elif scene.action == "drinking from a cup":
        _draw_cup(body, pose.right[0] - 0.085, pose.right[1] - 0.01, prop)
    elif scene.action == "talking on the phone":
        _draw_phone(body, pose.right[0] - 0.02, pose.right[1] - 0.07)
    for arm_side, hand in ((-1, pose.left), (1, pose.right)):
        _draw_arm(body, arm_side, hand, scene.garment, cloth, skin)
    if pose.ball is not None:
        _draw_ball(body, *pose.ball, prop)


def _rounded(pose: HeadPose) -> HeadPose:
    """Poses on a grid, so that frames share sprites."""
    return HeadPose(round(pose.turn, 1), round(pose.nod, 1), round(pose.tilt), pose.mouth_open)


def _camera_offset(camera: Camera, t: float, side: int, parallax: float = 1.0) -> tuple[float, float]:
    """Where the frame's origin lands, in pixels: zoom about the middle, then shift and pan."""
    centre = side * (1 - camera.zoom) / 2
    dx = camera.dx + camera.pan_x * (t - 0.5)
    dy = camera.dy + camera.pan_y * (t - 0.5)
    return centre + side * dx * parallax, centre + side * dy * parallax


# ---------------------------------------------------------------------------------------------------------------
# Places: each drawer covers [-PLACE_MARGIN, 1 + PLACE_MARGIN] in both directions
# ---------------------------------------------------------------------------------------------------------------


def _ground(pen: Pen, top: float, color: Color) -> None:
    pen.box(0.5, (top + 1.3) / 2, 0.9, (1.3 - top) / 2, color, None)


def _draw_park(pen: Pen, rng: np.random.Generator) -> None:
    _ground(pen, -0.3, (150, 214, 250))
    _ground(pen, 0.62, (108, 190, 84))
    for x in (-0.1, 0.16, 0.84, 1.1):
        x += float(rng.uniform(-0.07, 0.07))
        pen.box(x, 0.6, 0.03, 0.16, (126, 84, 48))
        pen.ellipse(x, 0.36, 0.14, 0.19, (46, 140, 60))
    for _ in range(14):
        pen.ellipse(float(rng.uniform(-0.2, 1.2)), float(rng.uniform(0.7, 1.1)), 0.018, 0.018, (250, 230, 110), None)


def _draw_beach(pen: Pen, rng: np.random.Generator) -> None:
    _ground(pen, -0.3, (130, 216, 246))
    pen.ellipse(float(rng.choice([0.08, 0.9])), 0.12, 0.1, 0.1, (255, 226, 90), None)
    _ground(pen, 0.42, (30, 132, 200))
    for _ in range(10):
        x, y = float(rng.uniform(-0.2, 1.1)), float(rng.uniform(0.46, 0.62))
        pen.stroke([(x, y), (x + 0.1, y)], (220, 244, 250), 0.014)
    _ground(pen, 0.66, (246, 222, 156))
    x = float(rng.choice([0.04, 0.96]))
    pen.stroke([(x, 0.36), (x, 0.8)], INK, 0.02)
    pen.polygon([(x - 0.17, 0.4), (x - 0.08, 0.3), (x, 0.27), (x + 0.08, 0.3), (x + 0.17, 0.4)], (240, 70, 70))


def _draw_kitchen(pen: Pen, rng: np.random.Generator) -> None:
    _ground(pen, -0.3, (250, 236, 206))
    for x in np.arange(-0.2, 1.3, 0.1):
        pen.box(float(x), 0.5, 0.006, 0.16, (220, 200, 170), None)
    pen.box(0.5, 0.5, 0.8, 0.005, (220, 200, 170), None)
    shift = float(rng.uniform(-0.05, 0.05))
    for x in (-0.08, 0.18, 0.82, 1.08):
        pen.box(x + shift, 0.12, 0.125, 0.16, (92, 176, 170))
        pen.ellipse(x + shift + 0.08, 0.2, 0.016, 0.016, INK, None)
    _ground(pen, 0.66, (214, 150, 96))
    pen.box(0.5, 0.66, 0.9, 0.03, (120, 78, 56))
    x = float(rng.choice([0.1, 0.9]))
    pen.box(x, 0.54, 0.09, 0.09, (200, 60, 60), radius=0.03)
    pen.box(x, 0.44, 0.03, 0.015, INK, None)


def _draw_office(pen: Pen, rng: np.random.Generator) -> None:
    _ground(pen, -0.3, (206, 212, 222))
    for y in np.arange(-0.1, 0.34, 0.06):
        pen.box(0.5, float(y), 0.34, 0.018, (244, 248, 252), None)
    shift = float(rng.uniform(-0.04, 0.04))
    _ground(pen, 0.7, (128, 134, 148))
    for x in (0.08 + shift, 0.93 + shift):
        pen.box(x, 0.5, 0.13, 0.12, (44, 52, 66))
        pen.box(x, 0.49, 0.1, 0.085, (90, 200, 250), None)
        pen.box(x, 0.64, 0.03, 0.04, (44, 52, 66))
    for _ in range(6):
        note = ((250, 232, 90), (250, 150, 170))[int(rng.integers(2))]
        pen.box(float(rng.choice([0.02, 0.1, 0.9, 0.98])), float(rng.uniform(0.05, 0.34)), 0.03, 0.03, note, None)


def _draw_street(pen: Pen, rng: np.random.Generator) -> None:
    _ground(pen, -0.3, (188, 222, 240))
    walls = ((206, 96, 74), (232, 178, 110), (160, 120, 150), (120, 150, 130))
    x = -0.24
    while x < 1.2:
        width = float(rng.uniform(0.2, 0.28))
        top = float(rng.uniform(-0.1, 0.2))
        pen.box(x + width / 2, (top + 0.72) / 2, width / 2, (0.72 - top) / 2, walls[int(rng.integers(4))])
        for y in np.arange(top + 0.08, 0.6, 0.15):
            for offset in (0.3, 0.7):
                pen.box(x + width * offset, float(y), 0.03, 0.04, (250, 244, 200), None)
        x += width
    _ground(pen, 0.7, (150, 150, 152))
    _ground(pen, 0.8, (86, 86, 92))
    for x in np.arange(-0.1, 1.2, 0.3):
        pen.box(float(x), 0.92, 0.08, 0.012, (250, 220, 90), None)


def _draw_library(pen: Pen, rng: np.random.Generator) -> None:
    _ground(pen, -0.3, (104, 62, 36))
    spines = ((170, 40, 40), (40, 90, 60), (40, 60, 120), (200, 160, 60), (90, 50, 100), (220, 210, 190))
    for shelf in (-0.04, 0.2, 0.44, 0.68):
        x = -0.2
        while x < 1.2:
            width = float(rng.uniform(0.035, 0.06))
            height = float(rng.uniform(0.13, 0.19))
            pen.box(x + width / 2, shelf - height / 2, width / 2, height / 2, spines[int(rng.integers(6))])
            x += width
        pen.box(0.5, shelf + 0.014, 0.8, 0.016, (150, 96, 56), None)
    _ground(pen, 0.74, (134, 84, 52))


def _draw_mountains(pen: Pen, rng: np.random.Generator) -> None:
    _ground(pen, -0.3, (196, 224, 244))
    for x in (-0.05, 0.3, 0.72, 1.06):
        x += float(rng.uniform(-0.06, 0.06))
        top = float(rng.uniform(0.02, 0.16))
        pen.polygon([(x - 0.34, 0.72), (x, top), (x + 0.34, 0.72)], (108, 124, 158))
        slope = 0.2 / 0.7 * 0.55
        pen.polygon([(x - slope, top + 0.24), (x, top), (x + slope, top + 0.24), (x, top + 0.18)], WHITE)
    _ground(pen, 0.66, (240, 246, 252))
    for x in (0.04, 0.92):
        x += float(rng.uniform(-0.04, 0.04))
        pen.polygon([(x - 0.09, 0.78), (x, 0.46), (x + 0.09, 0.78)], (30, 96, 76))
    for _ in range(24):
        pen.ellipse(float(rng.uniform(-0.2, 1.2)), float(rng.uniform(-0.2, 1.1)), 0.012, 0.012, WHITE, None)


def _draw_night_city(pen: Pen, rng: np.random.Generator) -> None:
    _ground(pen, -0.3, (22, 22, 60))
    pen.ellipse(float(rng.uniform(0.05, 0.2)), 0.1, 0.075, 0.075, (250, 244, 200), None)
    for _ in range(16):
        pen.ellipse(float(rng.uniform(-0.2, 1.2)), float(rng.uniform(-0.2, 0.3)), 0.008, 0.008, WHITE, None)
    x = -0.24
    while x < 1.2:
        width = float(rng.uniform(0.14, 0.22))
        top = float(rng.uniform(0.14, 0.46))
        pen.box(x + width / 2, (top + 0.9) / 2, width / 2, (0.9 - top) / 2, (48, 44, 92))
        for y in np.arange(top + 0.06, 0.8, 0.1):
            for offset in (0.3, 0.7):
                lit = (255, 214, 90) if rng.random() < 0.7 else (70, 66, 120)
                pen.box(x + width * offset, float(y), 0.022, 0.026, lit, None)
        x += width
    _ground(pen, 0.84, (36, 34, 52))


PLACE_DRAWERS: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "park": _draw_park,
    "beach": _draw_beach,
    "kitchen": _draw_kitchen,
    "office": _draw_office,
    "street": _draw_street,
    "library": _draw_library,
    "mountains": _draw_mountains,
    "night city": _draw_night_city,
}


@functools.lru_cache(maxsize=len(PLACE_DRAWERS) * PLACE_VARIANTS)
def _place(place: str, variant: int, side: int) -> Image.Image:
    """The place with its margin, RGB; the frame's origin lies at PLACE_MARGIN * side."""
    full = math.ceil(side * (1 + 2 * PLACE_MARGIN))
    image = Image.new("RGB", (full, full))
    pen = Pen(image, side, PLACE_MARGIN * side, PLACE_MARGIN * side, OUTLINE * side * 0.7)
    PLACE_DRAWERS[place](pen, np.random.default_rng(variant))
    return image


@functools.lru_cache(maxsize=4)
def _zoomed_place(place: str, variant: int, mirrored: bool, side: int, zoom: float) -> Image.Image:
    image = _place(place, variant, side)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    full = round(image.width * zoom)
    return image.resize((full, full), Image.Resampling.BILINEAR)


def _background(scene: Scene, t: float, side: int) -> Image.Image:
    variant, mirrored = scene.seed % PLACE_VARIANTS, scene.seed // PLACE_VARIANTS % 2 == 1
    zoomed = _zoomed_place(scene.place, variant, mirrored, side, scene.camera.zoom)
    left, top = _camera_offset(scene.camera, t, side, FAR_PARALLAX)
    margin = PLACE_MARGIN * side * scene.camera.zoom
    x, y = round(margin - left), round(margin - top)
    return zoomed.crop((x, y, x + side, y + side))


# ---------------------------------------------------------------------------------------------------------------
# Frames, clips, files
# ---------------------------------------------------------------------------------------------------------------


def _lit(picture: np.ndarray, light: Light) -> np.ndarray:
    """`picture` uint8 (H, W, 3) under `light`."""
    gains = np.array([1 + light.warmth, 1.0, 1 - light.warmth], dtype=np.float32) * np.float32(light.brightness)
    return np.minimum(picture * gains + np.float32(0.5), 255).astype(np.uint8)


def render_frame(identity: Identity, scene: Scene, t: float, size: int) -> np.ndarray:
    """The picture at time `t` in [0, 1] of the clip: uint8 (size, size, 3)."""
    image = _background(scene, t, size * SUPERSAMPLING)
    _draw_figure(image, identity, scene, t)
    return _lit(np.asarray(image.reduce(SUPERSAMPLING)), scene.light)


def render_clip(identity: Identity, scene: Scene, num_frames: int = 8, size: int = 64) -> np.ndarray:
    """`num_frames` pictures at times that divide [0, 1] evenly, both ends included: uint8 (T, H, W, 3)."""
    return np.stack([render_frame(identity, scene, t, size) for t in np.linspace(0.0, 1.0, num_frames).tolist()])


def render_matte(identity: Identity, scene: Scene, t: float, size: int) -> np.ndarray:
    """True where the person or the prop covers more than half of the pixel of `render_frame`: bool (size, size)."""
    covered = []
    for ground in ((0, 0, 0), (255, 255, 255)):
        image = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING), ground)
        _draw_figure(image, identity, scene, t)
        covered.append(np.asarray(image.reduce(SUPERSAMPLING)).astype(np.int16))
    return np.abs(covered[1] - covered[0]).max(axis=2) < 128


CAST_MARK = "pvchat cartoon cast: a drawn person"


def is_drawn(path: str | os.PathLike[str]) -> bool:
    """Whether a video file carries this world's mark, so that its person is fictional and can give no consent."""
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment") == CAST_MARK
    except (av.error.FFmpegError, OSError):
        return False


def write_video(path: str | os.PathLike[str], frames: np.ndarray | Sequence[np.ndarray], fps: float) -> None:
    """Writes uint8 RGB frames (T, H, W, 3) with even sides as H.264, yuv420p; the file appears whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.mp4")
    try:
        _encode(temporary, frames, fps)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode(path: Path, frames: np.ndarray | Sequence[np.ndarray], fps: float) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        container.metadata["comment"] = CAST_MARK
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"crf": "16", "preset": "veryfast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def render_video(
    path: str | os.PathLike[str],
    identity: Identity,
    scene: Scene,
    seconds: float = 2.0,
    fps: float = 12,
    size: int = 256,
) -> None:
    """Writes one clip, slowed or hastened to last `seconds`, as an mp4."""
    write_video(path, render_clip(identity, scene, max(2, round(seconds * fps)), size), fps)
