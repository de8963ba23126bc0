"""Backends for any computer: no downloads, no GPU, working from the pixels of any video of one person."""

from .animate import WarpAnimator
from .embed import HeadEmbedder
from .gallery import FolderGallery
from .portrait import PhotometricPortraits
from .quality import ClassicalQuality
from .scene import CompositeScenes

__all__ = [
    "ClassicalQuality",
    "CompositeScenes",
    "FolderGallery",
    "HeadEmbedder",
    "PhotometricPortraits",
    "WarpAnimator",
]
