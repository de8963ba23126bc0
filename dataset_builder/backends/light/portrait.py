"""Role PortraitGenerator: new stills of the person by light, tone and sharpness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..._random import generator
from ...protocols import Person
from .cutout import cut_out, recolour


class PhotometricPortraits:
    """Relights (a soft light from one side), tones and slightly blurs the best still, in other clothes."""

    id = "photometric@2"
    licences = ("Apache-2.0",)

    def generate(self, person: Person, prompt: str, seed: int) -> Person:
        """-> a Person with one frame and its alpha. prompt is not used: the place comes with the animation."""
        from PIL import Image, ImageFilter

        rng = generator("portrait", seed)
        cutout = recolour(cut_out(person).still(), seed)
        pixels = cutout.rgb[0].astype(np.float32) / 255
        H, W = pixels.shape[:2]
        y, x = (np.mgrid[0:H, 0:W].astype(np.float32) + 0.5) / np.float32([[[H]], [[W]]])
        angle = float(rng.uniform(0, 2 * np.pi))
        light = 1 + float(rng.uniform(0.05, 0.2)) * 2 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
        pixels = (pixels * light[..., None]).clip(0, 1) ** float(rng.uniform(0.85, 1.18))
        pixels = 0.5 + (pixels - 0.5) * float(rng.uniform(0.9, 1.1))
        image = Image.fromarray((pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8))
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.0)) * H / 256))
        return replace(person, frames=np.asarray(image)[None], alpha=cutout.alpha, best=0)
