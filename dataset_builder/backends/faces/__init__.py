"""Faces: detectors (MTCNN, YuNet, LBP cascade), embedders (FaceNet, SFace, AuraFace), and the paper's quality score.

Weights come from the Hub or from a path when a backend is made; packages beyond the core are the extra `faces`.
"""

from .auraface import AuraFace
from .facenet import FaceNet
from .landmarks import FaceLandmarks
from .lbp import LBPFaces
from .mtcnn import MTCNN
from .quality import EarQuality
from .sface import SFace
from .yunet import YuNet

__all__ = ["MTCNN", "AuraFace", "EarQuality", "FaceLandmarks", "FaceNet", "LBPFaces", "SFace", "YuNet"]
