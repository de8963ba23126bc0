"""Role QualityFilter: which frame shows the person best."""

from __future__ import annotations

import numpy as np

from ...protocols import Person, QualityReport
from .cutout import head_geometry, matte_bytes

MIN_HEAD_SHARE = 0.08  # of the frame's height
DARK, BRIGHT = 20.0, 240.0  # mean grey of the head that is still usable


class ClassicalQuality:
    """Sharpness of the head on a fixed-size crop (variance of the Laplacian), size, exposure, left-right symmetry."""

    id = "classical@1"
    licences = ("Apache-2.0",)

    def score(self, person: Person) -> list[QualityReport]:
        from PIL import Image
        from scipy.ndimage import laplace

        alpha = matte_bytes(person.frames) if person.alpha is None else person.alpha
        tops, necks, centres, widths = head_geometry(alpha)
        H = person.frames.shape[1]
        reports = []
        for frame, top, neck, centre, width in zip(person.frames, tops, necks, centres, widths, strict=True):
            size, reasons = (neck - top) / H, []
            half = max(4.0, width / 2)
            box = (round(centre - half), round(top), round(centre + half), round(max(neck, top + 4)))
            crop = np.asarray(Image.fromarray(frame).crop(box).convert("L").resize((64, 64)), np.float32)
            sharp = min(1.0, float(laplace(crop).var()) / 2000)
            symmetric = 1 - min(1.0, float(np.abs(crop - crop[:, ::-1]).mean()) / 64)
            mean = float(crop.mean())
            if size < MIN_HEAD_SHARE:
                reasons.append("the head is too small")
            if not DARK <= mean <= BRIGHT:
                reasons.append("the head is too dark or too bright")
            reports.append(QualityReport(0.5 * sharp + 0.3 * symmetric + 0.2 * min(1.0, 2 * size), tuple(reasons)))
        return reports
