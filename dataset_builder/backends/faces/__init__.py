"""Faces in photographs and films: where they are, whose they are, how well they show.

    mtcnn.MTCNN, yunet.YuNet, lbp.LbpDetector                        FaceDetector
    facenet.FaceNet, sface.SFace, auraface.AuraFace, hog.FaceHog     FaceEmbedder; each takes a detector
    quality.EarQuality                                               QualityFilter; takes a detector and
                                                                     landmarks.FaceLandmarks

LbpDetector and FaceHog need no weights. The others read theirs from the Hub or from a file when they are constructed.
"""
