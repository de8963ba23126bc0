"""sRGB <-> CIE Lab (D65, 2 degrees), without warnings about colours outside the gamut: those are clipped."""

from __future__ import annotations

import numpy as np

_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], np.float32
)
_FROM_XYZ = np.linalg.inv(_TO_XYZ.astype(np.float64)).astype(np.float32)
_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)
_LINEAR = np.where((_S := np.arange(256) / 255) > 0.04045, ((_S + 0.055) / 1.055) ** 2.4, _S / 12.92).astype(
    np.float32
)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (..., 3) float32: lightness 0 to 100, a and b about -100 to 100."""
    xyz = _LINEAR[rgb] @ (_TO_XYZ / _WHITE[:, None]).T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + np.float32(16 / 116))
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """(..., 3) float -> (..., 3) float32 sRGB within [0, 1]."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1).astype(np.float32)
    xyz = np.where(f > 0.2068966, f**3, (f - np.float32(16 / 116)) / 7.787) * _WHITE
    linear = (xyz @ _FROM_XYZ.T).clip(0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear).astype(np.float32)
