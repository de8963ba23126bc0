"""Role PortraitAnimator: LivePortrait moves the head of a still and puts it back into the picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ....errors import PVChatError
from ..._random import generator
from ...engine import Rejected, hash_file
from ...protocols import Face, FaceDetector, Generated, Person
from ...recipe import DRIVERS
from ...scenes import driver_truth
from ...video_io import read_video
from ..common import backend_id, best_device, file_version
from .crop import (
    FIVE_POINT_SCALE,
    FIVE_POINT_SHIFT,
    Square,
    face_square,
    mean_square,
    network_input,
    paste_back,
    warped_mask,
)
from .drivers import FPS, driver_motion
from .model import REPO, LivePortrait, fill_networks, hub_files, weight_files
from .motion import Motion


class LivePortraitAnimator:
    """The head moves relative to its pose in the still; the stitching network keeps the shoulders where they are.

    detector: finds the face and its five points.
    driving_videos: a driving clip per motion, such as {"smile": "smile.mp4"}: one person who starts from a neutral
    face. Motions without one follow the curves of `drivers`, about two seconds at 25 frames per second.
    folder: a local copy of the weights; else they come from `repo` at `revision`. Part of the cache key.
    num_frames: of the curves. batch_size: driving frames that are rendered together.
    device, dtype: None = the GPU in float16 where there is one, else the CPU in float32.
    model: a ready LivePortrait instead of the official weights.

    Raises PVChatError for a driving clip, a motion or a weights file that is missing. Weights are loaded at the first
    call; raises MissingBackendError when they are absent. Rejected when no face with five points is found.
    """

    licences = ("MIT",)

    def __init__(
        self,
        detector: FaceDetector,
        driving_videos: Mapping[str, str | Path] | None = None,
        *,
        folder: str | Path | None = None,
        repo: str = REPO,
        revision: str = "main",
        num_frames: int = 50,
        batch_size: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        model: LivePortrait | None = None,
    ):
        self.driving_videos = {name: Path(path) for name, path in (driving_videos or {}).items()}
        for name, path in self.driving_videos.items():
            _check_driver(name)
            if not path.is_file():
                raise PVChatError(f"The driving clip {name!r} is not at {path}; pass a video file.")
        if num_frames < 2 or batch_size < 1:
            raise PVChatError(
                f"num_frames must be at least 2 and batch_size at least 1, got {num_frames} and {batch_size}."
            )
        self.detector, self.repo, self.revision = detector, repo, revision
        self.num_frames, self.batch_size = num_frames, batch_size
        self.device = torch.device(device) if device is not None else best_device()
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.float16)
        self._files = None if folder is None else weight_files(folder)
        self._model = None if model is None else model.place(self.device, self.dtype)
        self._motions: dict[str, tuple[Motion, float]] = {}
        clips = {name: hash_file(path) for name, path in self.driving_videos.items()}
        settings = [repo, detector.id, clips, num_frames, str(self.dtype)]
        self.licences = tuple(dict.fromkeys((*self.licences, *detector.licences)))
        version = revision if self._files is None else file_version(*self._files.values())
        self.id = backend_id("liveportrait", 2, version, settings=settings)

    @torch.inference_mode()
    def animate(self, still: Person, driver: str, seed: int) -> Generated:
        """-> frames (T, H, W, 3) of the still's size, made even. The seed varies speed, direction and strength of the
        motion. The truth says what the driver does."""
        _check_driver(driver)
        frame = still.still().frames[0]
        frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
        face = _best(self.detector.detect(frame[None])[0])
        if face is None:
            raise Rejected("no face with five points was found in the still")
        model, square = self._load(), _square(face)
        driving, fps = self._driving(driver, seed)
        image = network_input(frame[None], square, self.device)
        features = model.features(image)
        source, kp = model.motion(image)
        strength = float(generator("strength", driver, seed).uniform(0.8, 1.2))
        x_s, x_d = model.driving_keypoints(kp, source, driving, strength)

        to_frame = np.linalg.inv(square.to_crop())
        mask = warped_mask(to_frame, frame.shape[:2], self.device)
        pasted = [
            paste_back(frame, model.render(features, x_s, part).float() * 255, to_frame, mask)
            for part in x_d.split(self.batch_size)
        ]
        return Generated(np.concatenate(pasted), fps, driver_truth(driver))

    def _load(self) -> LivePortrait:
        if self._model is None:
            files = self._files or hub_files(self.repo, self.revision)
            self._model = fill_networks(LivePortrait(), files).place(self.device, self.dtype)
        return self._model

    def _driving(self, driver: str, seed: int) -> tuple[Motion, float]:
        if driver not in self.driving_videos:
            return driver_motion(driver, self.num_frames, seed).to(self.device), FPS
        if driver not in self._motions:
            self._motions[driver] = self._read_motion(self.driving_videos[driver])
        return self._motions[driver]

    def _read_motion(self, path: Path) -> tuple[Motion, float]:
        """The motion of a driving clip, cut out by one square, and its frames per second."""
        frames, fps = read_video(path)
        faces = [_best(found) for found in self.detector.detect(frames)]
        squares = [_square(face) for face in faces if face is not None]
        if not squares:
            raise PVChatError(f"No face was found in the driving clip {path}; pass a clip that shows one face.")
        square = mean_square(squares)
        parts = [
            self._load().motion(network_input(frames[i : i + self.batch_size], square, self.device))[0]
            for i in range(0, len(frames), self.batch_size)
        ]
        return Motion.join(parts), fps


def _check_driver(driver: str) -> None:
    if driver not in DRIVERS:
        raise PVChatError(f"Unknown driver {driver!r}; allowed: {', '.join(DRIVERS)}.")


def _best(faces: list[Face]) -> Face | None:
    return next((face for face in faces if face.points is not None), None)


def _square(face: Face) -> Square:
    return face_square(face.points, FIVE_POINT_SCALE, FIVE_POINT_SHIFT)
