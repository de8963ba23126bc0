"""Video to pixel tensor: reads a file, picks frames, resizes, normalises, cuts tiles.

Shape letters: V videos, N tiles of a video, T frames, H W pixels of the source, R pixels of a square tile.

Source of the numbers: the authors' training script (github.com/DavidYan2001/PVChat @ 5d383bb), which takes them from
InternVideo2-Chat-HD. `antialias=False, clamp=False` gives exactly its tensors.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import av
import numpy as np
import torch
from torch.nn import functional as F
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import is_pil_image
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import VideoProcessorMixin

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MATROSKA_SEGMENT = b"\x18\x53\x80\x67"
ADVICE = "Pass a video file such as an mp4."

# Servers ask for their own number of frames with every request. The model was trained with one number, so these are
# accepted and have no effect.
SAMPLING_REQUESTS = ("num_frames", "fps", "do_sample_frames", "video_metadata", "return_metadata")


# -- reading files ----------------------------------------------------------------------------------------------------


def frame_indices(total: int, num_segments: int) -> np.ndarray:
    """Which frames stand for a video: `floor(s / 2) + round(s * i)` with `s = (total - 1) / num_segments`.

    No jitter: training and inference see the same frames. Short videos repeat frames. Halves round to even.

    Args:
        total: frames of the video, at least 1.
        num_segments: frames wanted, at least 1.

    Returns:
        (num_segments,) int64, ascending, each 0 to total - 1.

    Raises:
        ValueError: one of the two is below 1.
    """
    if total < 1 or num_segments < 1:
        raise ValueError(f"total and num_segments must be at least 1, got {total} and {num_segments}.")
    step = (total - 1) / num_segments
    return int(step / 2) + np.round(step * np.arange(num_segments)).astype(np.int64)


def count_frames(path: str | os.PathLike) -> int:
    """Number of frames that decode (headers may be missing or wrong, so all are decoded).

    Raises:
        ValueError: the file cannot be read, see `read_video`.
    """
    return sum(1 for _ in _decode(os.fspath(path)))


def read_video(
    path: str | os.PathLike, indices: Sequence[int] | Callable[[int], Sequence[int]] | None = None
) -> tuple[np.ndarray, float]:
    """Reads frames of a video file; only those are held in memory.

    Args:
        path: a file that FFmpeg can decode. A picture counts as a video of one frame.
        indices: frames to return, in this order, repeats allowed; or a function from the number of frames to such a
            list; or `None` for all. With a list, reading ends at the last frame that is wanted. With a function, the
            file is decoded once if its header states the right number of frames, else twice.

    Returns:
        (T, H, W, 3) uint8 RGB, turned upright; and frames per second (25 if the file does not say).

    Raises:
        ValueError: one line that says why: the file is missing, a folder, empty, not a video, cut off or damaged, has
            no video stream or no frames, or has no frame of that index.
    """
    path = os.fspath(path)
    with _open(path) as (_, stream):
        stated, fps = stream.frames, float(stream.average_rate or stream.guessed_rate or 25)
    if indices is None:
        frames, count = _collect(path, None)
        return np.stack([frames[i] for i in range(count)]), fps
    if not callable(indices):
        wanted = [int(i) for i in indices]
        frames, count = _collect(path, wanted, stop=True)
    else:
        expected = stated or count_frames(path)
        wanted = [int(i) for i in indices(expected)]
        frames, count = _collect(path, wanted)
        if count != expected:
            wanted = [int(i) for i in indices(count)]
            frames, count = _collect(path, wanted)
    missing = [i for i in wanted if i not in frames]
    if not wanted:
        raise ValueError(f"No frame of {path} was asked for: pass at least one index.")
    if missing:
        raise ValueError(f"{path} has no frame {missing[0]}: frames count from 0, and {count} were read.")
    return np.stack([frames[i] for i in wanted]), fps


def _collect(path: str, wanted: Sequence[int] | None, stop: bool = False) -> tuple[dict[int, np.ndarray], int]:
    """Decodes and keeps `wanted` frames (`None`: all); `stop` ends after the last of them. Also the frames seen."""
    kept: dict[int, np.ndarray] = {}
    chosen = None if wanted is None else set(wanted)
    count, size = 0, None
    for frame in _decode(path):
        if chosen is None or count in chosen:
            size = size or (frame.width, frame.height)  # recordings of calls change size on the way
            image = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            kept[count] = np.rot90(image, round(frame.rotation / 90))
        count += 1
        if stop and count > max(chosen, default=-1):
            break
    return kept, count


def _decode(path: str) -> Iterator[av.VideoFrame]:
    """Every frame of the video stream, in order. At least one, or a ValueError."""
    count = 0
    with _open(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise ValueError(f"{path} is cut off or damaged after {count} frames. {ADVICE}")
                for frame in packet.decode():
                    count += 1
                    yield frame
        except av.error.FFmpegError as error:
            raise ValueError(f"{path} is cut off or damaged: decoding stops after {count} frames. {ADVICE}") from error
    if count == 0:
        raise ValueError(f"{path} has a video stream without frames. {ADVICE}")


@contextmanager
def _open(path: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its video stream (cover pictures of music files do not count)."""
    if "://" in path or path.startswith("data:"):
        raise ValueError(f"{path[:60]} is an address, not a file. Download the video and pass its path.")
    if not os.path.exists(path):
        raise ValueError(f"The video {path} does not exist. {ADVICE}")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is a folder, not a video. {ADVICE}")
    if os.path.getsize(path) == 0:
        raise ValueError(f"The video {path} is empty (0 bytes). {ADVICE}")
    try:
        container = av.open(path)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path} is not a video, or it is damaged ({error.strerror}). {ADVICE}") from error
    with container:
        if container.format.name == "tty":  # FFmpeg draws text files
            raise ValueError(f"{path} is a text file, not a video. {ADVICE}")
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise ValueError(f"{path} has no video stream (sound only?). {ADVICE}")
        if streams[0].codec_context is None:
            raise ValueError(f"{path} uses a codec that cannot be decoded here. Convert it to h264 first.")
        if "matroska" in container.format.name and _matroska_is_cut(path):
            raise ValueError(f"{path} is cut off: the file is shorter than its header says. {ADVICE}")
        yield container, streams[0]


def _matroska_is_cut(path: str) -> bool:
    """FFmpeg reads a cut mkv or webm to its end without an error; the size of the top element gives it away.

    An EBML size has as many bytes as its first byte has leading zeros, plus one; all bits set means unknown (a live
    recording). Source: RFC 8794, section 4.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
    before, found, after = head.partition(MATROSKA_SEGMENT)
    if not found or not after:
        return True
    width = 9 - after[0].bit_length()
    size = int.from_bytes(after[:width], "big") - (1 << 7 * width)
    unknown = (1 << 7 * width) - 1
    return size != unknown and os.path.getsize(path) < len(before) + len(found) + width + size


# -- pixels -----------------------------------------------------------------------------------------------------------


class PVChatVideosKwargs(VideosKwargs, total=False):
    """Adds the keywords that only PVChat has; see `PVChatVideoProcessor`."""

    tile_grid: list[int] | tuple[int, ...] | None
    antialias: bool
    clamp: bool
    still: bool


class PVChatVideoProcessor(VideoProcessorMixin):
    r"""Turns videos into the pixel tensor of `PVChatModel`. Needs no torchvision.

    A frame is squeezed to `columns * R` by `rows * R` pixels whatever its shape, normalised and cut into tiles, row by
    row; the last tile is the whole normalised frame, squeezed to R by R.

    Args:
        size: R, or `{"height": R, "width": R}`: pixels of a tile, the `image_size` of the video encoder.
        num_frames: T, frames that stand for a video, chosen by `frame_indices`.
        tile_grid: columns and rows of tiles; `None` for the whole frame only.
        image_mean, image_std: of red, green and blue in 0..1; those of ImageNet.
        antialias: filter before shrinking. The authors' code does not (`False`), so a large frame is read at a few of
            its pixels, and fine texture such as hair or cloth turns into patterns that flicker between frames.
        clamp: keep resized pixels in 0..255. The authors' code does not (`False`): bicubic overshoots at edges.
    """

    valid_kwargs = PVChatVideosKwargs
    model_input_names = ["pixel_values_videos"]
    tile_grid = (2, 1)  # without a default that is not None here, saving drops a tile_grid of None

    def __init__(
        self,
        size: int | dict[str, int] = 224,
        num_frames: int = 8,
        tile_grid: Sequence[int] | None = (2, 1),
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        antialias: bool = True,
        clamp: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        sides = set(size.values()) if isinstance(size, dict) else {size}
        if len(sides) != 1 or min(sides) < 1:
            raise ValueError(f"size must be one number of pixels (tiles are square), got {size}.")
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
        if tile_grid is not None and (len(tile_grid) != 2 or min(tile_grid) < 1):
            raise ValueError(f"tile_grid must be columns and rows, such as (2, 1), or None, got {tile_grid}.")
        if len(image_mean) != 3 or len(image_std) != 3:
            raise ValueError(f"image_mean and image_std must have 3 values, got {image_mean} and {image_std}.")
        side = sides.pop()
        self.size = {"height": side, "width": side}
        self.num_frames = num_frames
        self.tile_grid = None if tile_grid is None else tuple(tile_grid)
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        self.antialias = antialias
        self.clamp = clamp

    @property
    def num_tiles(self) -> int:
        """N: the tiles of the grid and the whole frame."""
        return 1 if self.tile_grid is None else self.tile_grid[0] * self.tile_grid[1] + 1

    def preprocess(self, videos, still: bool = False, return_tensors: str | None = None, **kwargs) -> BatchFeature:
        """What calling the processor does.

        Args:
            videos: a video or a list of videos. A video is a path, an array or tensor (T, H, W, 3) or (T, 3, H, W) of
                uint8, or a list of PIL images or such arrays without T.
            still: repeat the first frame of each video instead (training stage 1).
            return_tensors: "pt" or "np"; `None` gives PyTorch, too.
            kwargs: requests for another sampling, as servers send them, have no effect.

        Returns:
            `pixel_values_videos` (V, N, T, 3, R, R) float32.

        Raises:
            ValueError: no video, an unreadable file, or an array of another kind.
            TypeError: a keyword that is fixed when the processor is made or loaded, such as `size`.
        """
        fixed = [name for name, value in kwargs.items() if value is not None and name not in SAMPLING_REQUESTS]
        if fixed:
            raise TypeError(f"{', '.join(fixed)} cannot change from call to call: set it when loading the processor.")
        videos = list_videos(videos)
        if not videos:
            raise ValueError("Got an empty list: pass at least one video.")
        pixel_values = torch.stack([self.to_tiles(self._frames(video, still)) for video in videos])
        if still:
            pixel_values = pixel_values.repeat(1, 1, self.num_frames, 1, 1, 1)
        return BatchFeature({"pixel_values_videos": pixel_values}, tensor_type=return_tensors)

    def _frames(self, video: str | np.ndarray | torch.Tensor, still: bool) -> torch.Tensor:
        """The frames that are used, (T, 3, H, W) uint8; one if `still`."""
        if isinstance(video, str):
            frames = read_video(video, [0] if still else lambda total: frame_indices(total, self.num_frames))[0]
        else:
            if len(video) == 0:
                raise ValueError("Got a video of 0 frames: pass at least one frame.")
            frames = video[[0] if still else frame_indices(len(video), self.num_frames)]
        frames = frames.cpu() if isinstance(frames, torch.Tensor) else torch.from_numpy(frames)
        if frames.dtype != torch.uint8:
            raise ValueError(f"Frames must be uint8 (0 to 255), got {frames.dtype}: scale and convert them first.")
        if frames.shape[-1] == 3:
            return frames.permute(0, 3, 1, 2)
        if frames.shape[1] == 3:
            return frames
        raise ValueError(f"Frames must be (T, H, W, 3) or (T, 3, H, W), got {tuple(frames.shape)}.")

    def to_tiles(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, 3, H, W) uint8 -> (N, T, 3, R, R) float32"""
        side = self.size["height"]
        columns, rows = self.tile_grid or (1, 1)
        # One frame at a time: eight 4K frames as float32 would be 0.8 GB.
        frames = torch.cat([self._resize(frame[None].float(), rows * side, columns * side) for frame in frames])
        if self.clamp:
            frames = frames.clamp(0.0, 255.0)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        frames = (frames / 255.0 - mean) / std
        if self.tile_grid is None:
            return frames[None]
        tiles = frames.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (T, 3, rows, R, columns, R)
        tiles = tiles.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)
        return torch.cat([tiles, self._resize(frames, side, side)[None]])

    def _resize(self, frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(T, 3, H, W) float32, bicubic, shape not kept"""
        return F.interpolate(
            frames, size=(height, width), mode="bicubic", align_corners=False, antialias=self.antialias
        )


def list_videos(videos) -> list[str | np.ndarray | torch.Tensor]:
    """One entry per video, in order: paths as `str`, everything else as an array of 4 dimensions.

    Lists may be nested (a batch of conversations gives one list of videos per conversation).

    Raises:
        ValueError: something that is not a video.
    """
    if isinstance(videos, str | os.PathLike):
        return [os.fspath(videos)]
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim in (4, 5):
        return [videos] if videos.ndim == 4 else list(videos)
    if isinstance(videos, list | tuple):
        if videos and all(_is_frame(item) for item in videos):
            frames = [np.asarray(item.convert("RGB") if is_pil_image(item) else item) for item in videos]
            if len({frame.shape for frame in frames}) > 1:
                raise ValueError("The frames of a video must have one size; resize them first.")
            return [np.stack(frames)]
        return [video for item in videos for video in list_videos(item)]
    shape = f" of shape {tuple(videos.shape)}" if hasattr(videos, "shape") else ""
    raise ValueError(
        f"A video is a path, an array (T, H, W, 3) or a list of frames; got {type(videos).__name__}{shape}."
    )


def _is_frame(item) -> bool:
    return is_pil_image(item) or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim == 3)


__all__ = ["PVChatVideoProcessor", "count_frames", "frame_indices", "list_videos", "read_video"]
