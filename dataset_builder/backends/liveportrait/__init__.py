"""LivePortrait: a still moved by head poses and expressions (Guo et al., 2407.03168).

    networks   the five networks, with the names of the official state dicts
    model      all of them together; reads the files of KwaiVGI/LivePortrait
    motion     key points, rotation, relative motion
    drivers    the five motions of a recipe as curves
    crop       the square around a face, cut out and put back
    animator   the backend

Source in, 50 frames out; the source's features are computed once. No retargeting of eyes and lips, hence any detector
with five points will do.
"""

from .animator import LivePortraitAnimator
from .model import LivePortrait

__all__ = ["LivePortrait", "LivePortraitAnimator"]
