"""Other people for the negatives, from sources that the user names. Nothing is downloaded.

ClipTopK     the paper's: pictures that CLIP finds most alike, minus the subject
FaceTopK     faces in a band of similarity: alike, but not the same person
RandomClips  anybody, one clip per person (CelebV-HQ layout, a folder, or a data set)
"""

from .clip import ClipEncoder, ClipTopK
from .face import FaceTopK
from .random import RandomClips

__all__ = ["ClipEncoder", "ClipTopK", "FaceTopK", "RandomClips"]
