"""Role SceneVideoGenerator: the person's own motion, replayed in another place, light and clothes."""

from __future__ import annotations

import numpy as np

from ..._random import generator
from ...protocols import Generated, Person
from .compose import compose, place_kind
from .cutout import cut_out, recolour


class CompositeScenes:
    """Cut out, recolour the clothes, replay in another time order, put into a drawn place."""

    id = "composite@5"
    licences = ("Apache-2.0",)

    def generate(self, person: Person, prompt: str, seed: int) -> Generated:
        """prompt: a kind of place (places.PLACES), or anything else for one drawn from the seed."""
        cutout = recolour(cut_out(person), seed)
        cutout = cutout.take(replay(len(cutout), seed))
        return Generated(compose(cutout, prompt, seed), person.fps, {"place": place_kind(prompt, seed)})


def replay(length: int, seed: int) -> np.ndarray:
    """Frame indices (length,) of another time order: a part of the clip, faster or slower, maybe reversed, there and
    back where it ends too early."""
    rng = generator("replay", seed)
    speed = float(rng.uniform(0.6, 1.5))
    position = rng.uniform(0, length - 1) + speed * np.arange(length)
    period = max(1, 2 * (length - 1))
    folded = position % period
    index = np.round(np.minimum(folded, period - folded)).astype(int)
    return index[::-1].copy() if rng.random() < 0.5 else index
