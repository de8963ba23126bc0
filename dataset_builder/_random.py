"""Random numbers that depend on nothing but the seed parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from .engine import derive_seed


def generator(*parts: Any) -> np.random.Generator:
    """A generator of its own for these parts, for example ("recolour", seed)."""
    return np.random.default_rng(derive_seed(*parts))
