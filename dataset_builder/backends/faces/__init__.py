"""Faces in photographs and films: where they are, whose they are, how well they show.

    MTCNN, YuNet, LbpDetector             FaceDetector
    FaceNet, SFace, AuraFace, FaceHog     FaceEmbedder; each takes a detector
    EarQuality                            QualityFilter of the paper; takes a detector and FaceLandmarks

LbpDetector and FaceHog need no weights. The others read theirs from the Hub or from a file when they are constructed.
"""

from .auraface import AuraFace
from .facenet import FaceNet
from .hog import FaceHog
from .landmarks import FaceLandmarks
from .lbp import LbpDetector
from .mtcnn import MTCNN
from .quality import EarQuality
from .sface import SFace
from .yunet import YuNet

__all__ = [
    "MTCNN",
    "AuraFace",
    "EarQuality",
    "FaceHog",
    "FaceLandmarks",
    "FaceNet",
    "LbpDetector",
    "SFace",
    "YuNet",
]
