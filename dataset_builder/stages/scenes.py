"""scenes: the person in a new place, in motion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine import Artefact, Stage, Task
from ..people import PersonFiles
from ..protocols import Generated
from ..scenes import draw_scene
from ..video_io import write_video
from .common import NOT_NEEDED, Build, Made, Shot


def scenes(build: Build, shots: Sequence[Shot]) -> list[Made]:
    """The clips of the shots in the styles "scene" and "oracle"; those that a generator refuses are dropped."""
    shots = [shot for shot in shots if shot.style in ("scene", "oracle")]
    if not shots:
        build.engine.skip("scenes", NOT_NEEDED)
    tasks = [_oracle(build, shot) if shot.style == "oracle" else _scene(build, shot) for shot in shots]
    return [
        Made(shot, clip, task.stage.backend)
        for shot, task, clip in zip(shots, tasks, build.engine.map(tasks), strict=True)
        if isinstance(clip, Artefact)
    ]


def _scene(build: Build, shot: Shot) -> Task:
    seed, noun = shot.seed(build), build.noun(shot.footage)
    prompt = "" if noun == "person" else draw_scene(seed, noun).prompt  # "": the generator draws one by the seed
    return Task(
        Stage("scenes", 1, build.backends.scene.id, ".mp4"),
        shot.label,
        make_scene,
        {"files": shot.footage.files, "prompt": prompt, "seed": seed},
        {"prompt": prompt, "frames": shot.footage.frames, "best": shot.footage.best},
        shot.footage.hashes,
        seed,
    )


def _oracle(build: Build, shot: Shot) -> Task:
    seed = shot.seed(build)
    which = {"origin": shot.origin, "index": shot.index}
    stage = Stage("scenes", 1, build.recipe.backends["scene"], ".mp4")
    return Task(stage, shot.label, make_oracle, which | {"seed": seed}, which, (shot.parent,), seed)


def make_scene(target: Path, backends: Any, files: PersonFiles, prompt: str, seed: int) -> dict:
    return write_clip(target, backends.scene.generate(files.load(), prompt, seed))


def make_oracle(target: Path, backends: Any, origin: str, index: int, seed: int) -> dict:
    return write_clip(target, Generated(*backends.oracle(origin, index, seed)))


def write_clip(target: Path, made: Generated) -> dict:
    """Writes the mp4 and returns what a `Clip` needs to know about it."""
    write_video(target, made.frames, made.fps)
    _, height, width, _ = made.frames.shape
    return {
        "fps": made.fps, "num_frames": len(made.frames), "height": height, "width": width, "truth": made.truth,
    }  # fmt: skip
