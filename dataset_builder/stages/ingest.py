"""ingest: files -> sources, clips of at most the recipe's size and length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import PVChatError
from ..engine import Artefact, Reject, Rejected, Stage, Task, hash_file
from ..people import IMAGES, Source, read_picture
from ..video_io import read_video, write_video
from .common import Build


def ingest(build: Build, paths: Sequence[Path], *, optional: bool = False) -> list[Source]:
    """Raises PVChatError for a file that is no usable video or picture; where `optional`, such files are dropped."""
    side, frames = build.recipe.max_side, build.recipe.max_frames
    stage = Stage("ingest", 1, f"pyav-{side}-{frames}", ".mp4")
    hashes = [build.hashes.get(path) or hash_file(path) for path in paths]
    tasks = [
        Task(
            stage,
            path.name,
            make_clip,
            {"path": path, "max_side": side, "max_frames": frames, "optional": optional},
            inputs=(sha256,),
        )
        for path, sha256 in zip(paths, hashes, strict=True)
    ]
    clips = build.engine.map(tasks)
    for path, clip in zip(paths, clips, strict=True):
        if not optional and isinstance(clip, Reject):
            raise PVChatError(f"{path} cannot be read in: {clip.reason}.")
    return [
        Source(path, sha256, clip)
        for path, sha256, clip in zip(paths, hashes, clips, strict=True)
        if isinstance(clip, Artefact)
    ]


def make_clip(target: Path, backends: Any, path: Path, max_side: int, max_frames: int, optional: bool) -> dict:
    try:
        if path.suffix.lower() in IMAGES:
            frames, fps = read_picture(path, max_side)
        else:
            frames, fps = read_video(path, max_side, max_frames)
    except PVChatError as error:
        if optional:
            raise Rejected(str(error)) from error
        raise
    write_video(target, frames, fps)
    return {"fps": fps, "num_frames": len(frames), "height": frames.shape[1], "width": frames.shape[2]}
