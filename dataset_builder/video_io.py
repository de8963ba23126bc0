"""Reading and writing mp4 files with PyAV. Frames are uint8 arrays (T, H, W, 3), RGB.

Files are written as h264, yuv420p, with fixed settings on one thread and no dates, so that the same frames give the
same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PVChatError

if TYPE_CHECKING:
    import av

MIN_FRAMES = 2  # below that nothing moves, and a video is a picture
MAX_PIXELS = 8192 * 8192  # of a frame; a damaged header can claim anything
LIKELY_FPS = (0.1, 1000.0)  # rates outside are a damaged header's
DEFAULT_FPS = 25.0  # where the file says nothing that is likely
_ADVICE = "Pass a video file such as an mp4 with at least 2 frames."


@dataclass(frozen=True)
class VideoInfo:
    """Size of the first frame in pixels (after rotation), frames per second, and the number of frames that decode."""

    width: int
    height: int
    fps: float
    num_frames: int


def _decode(path: Path) -> Iterator[tuple[av.VideoFrame, float]]:
    """Yields (frame, fps) for every frame; raises PVChatError when the file is not a whole video."""
    import av

    if not path.exists():
        raise PVChatError(f"The video {path} does not exist. {_ADVICE}")
    if not path.is_file():
        raise PVChatError(f"{path} is a folder, not a video. {_ADVICE}")
    if path.stat().st_size == 0:
        raise PVChatError(f"The video {path} is empty (0 bytes). {_ADVICE}")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, ValueError, OSError) as error:  # ValueError: text in the header that is no text
        raise PVChatError(
            f"{path} cannot be opened as a video (damaged, cut off, or another format). {_ADVICE}"
        ) from error
    with container:
        if not container.streams.video:
            raise PVChatError(f"{path} has no video stream (audio only?). {_ADVICE}")
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        fps = fps if LIKELY_FPS[0] <= fps <= LIKELY_FPS[1] else DEFAULT_FPS
        packets = 0
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                if packet.is_corrupt:
                    raise PVChatError(f"{path} is damaged or cut off at frame {packets}. {_ADVICE}")
                for frame in packet.decode():
                    if frame.width * frame.height > MAX_PIXELS:
                        raise PVChatError(f"{path} has frames of {frame.width} x {frame.height} pixels. {_ADVICE}")
                    yield frame, fps
        except av.error.FFmpegError as error:
            raise PVChatError(
                f"{path} is damaged or cut off: decoding fails after {packets} frames. {_ADVICE}"
            ) from error


def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns to the left that put a frame of a turned camera upright."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _size(info: VideoInfo, max_side: int | None) -> tuple[int, int]:
    """(width, height) of the frames that are read: even, at most `max_side` pixels on the longer side."""
    scale = min(1.0, max_side / max(info.height, info.width)) if max_side else 1.0
    return max(2, round(info.width * scale / 2) * 2), max(2, round(info.height * scale / 2) * 2)


def _pixels(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8, upright. size: (W, H)"""
    from PIL import Image

    image = np.rot90(frame.to_ndarray(format="rgb24"), _turns(frame))
    height, width = image.shape[:2]
    if size == (width, height):
        return np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS))


def probe_video(path: str | Path) -> VideoInfo:
    """Counts the frames by decoding them all.

    Raises PVChatError (one line) for a missing, empty, truncated, audio-only, zero-frame or one-frame file.
    """
    path = Path(path)
    count, shape, fps = 0, (0, 0), 0.0
    for frame, rate in _decode(path):
        if count == 0:
            shape = (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)
        count, fps = count + 1, rate
    if count == 0:
        raise PVChatError(f"{path} has no frames (zero-length video). {_ADVICE}")
    if count < MIN_FRAMES:
        raise PVChatError(f"{path} has 1 frame; a video needs at least {MIN_FRAMES}. {_ADVICE}")
    return VideoInfo(width=shape[1], height=shape[0], fps=fps, num_frames=count)


def read_video(
    path: str | Path, max_side: int | None = None, max_frames: int | None = None
) -> tuple[np.ndarray, float]:
    """Returns frames (T, H, W, 3) uint8 and fps.

    max_side: larger frames are reduced to this many pixels on the longer side; sizes become even, and those of the
    first frame where they change.
    max_frames: longer videos are sampled evenly, and fps is lowered so that the duration stays.
    Raises PVChatError as `probe_video` does.
    """
    path = Path(path)
    info = probe_video(path)
    wanted = range(info.num_frames)
    if max_frames is not None and info.num_frames > max_frames:
        wanted = np.linspace(0, info.num_frames - 1, max_frames).round().astype(int)
    chosen = set(int(i) for i in wanted)
    size = _size(info, max_side)
    frames = [_pixels(f, size) for i, (f, _) in enumerate(_decode(path)) if i in chosen]
    return np.stack(frames), info.fps * len(frames) / info.num_frames


def synthetic_mark(generator: str) -> str:
    """The metadata `comment` of a clip that a backend generated, for machines that look for such a mark."""
    return f"synthetic=true; generator={generator}"


def write_video(path: str | Path, frames: np.ndarray, fps: float, comment: str | None = None) -> None:
    """Writes frames (T, H, W, 3) uint8 with even H and W. The same input gives the same bytes.

    comment: the file's metadata of that name; generated clips say so there (`synthetic_mark`).
    """
    import av

    height, width = frames.shape[1:3]
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        stream.flags |= av.codec.context.Flags.bitexact
        stream.options = {"crf": "16", "preset": "superfast", "threads": "1", "tune": "fastdecode"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
