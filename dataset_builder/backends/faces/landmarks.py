"""Dense points of a face: MediaPipe's FaceLandmarker."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ....errors import MissingBackendError, PVChatError
from ..common import FACES, file_version, hub_file, local_file, require

FILE = "face_landmarker.task"
SOURCE = "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/" + FILE


class FaceLandmarks:
    """468 points of the face mesh and, after them, 10 of the irises.

    weights: the file face_landmarker.task (Apache-2.0), or the id of a Hub repository that holds one.
    """

    licences = ("Apache-2.0",)

    def __init__(self, weights: str | Path | None = None):
        require("mediapipe", backend="ear", pip=FACES)
        from mediapipe import Image, ImageFormat
        from mediapipe.tasks.python import BaseOptions, vision

        if weights is None:
            raise MissingBackendError(
                f"The backend ear needs the file {FILE} (licence: Apache-2.0): get it from {SOURCE} and pass its path."
            )
        if isinstance(weights, str) and weights.count("/") == 1 and not Path(weights).exists():
            path = hub_file(weights, FILE, backend="ear", licence="Apache-2.0")
        else:
            path = local_file(weights, "ear")
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=path.read_bytes()), num_faces=1
        )
        try:
            self._net = vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            raise PVChatError(f"{path} is not a {FILE}; get it from {SOURCE}.") from error
        self._image = lambda frame: Image(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        self.id = f"facelandmarker@1+{file_version(path)}"

    def find(self, frame: np.ndarray) -> np.ndarray | None:
        """frame (H, W, 3) uint8 -> (478, 2) x, y in shares of the frame's size; None when there is no face."""
        faces = self._net.detect(self._image(frame)).face_landmarks
        return np.array([(point.x, point.y) for point in faces[0]]) if faces else None
