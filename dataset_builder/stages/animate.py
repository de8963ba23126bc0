"""animate: stills that move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine import Artefact, Stage, Task
from ..people import PersonFiles
from .common import NOT_NEEDED, Build, Made
from .portraits import Posed
from .scenes import write_clip


def animate(build: Build, posed: Sequence[Posed]) -> list[Made]:
    """Those that the animator refuses are dropped."""
    if not posed:
        build.engine.skip("animate", NOT_NEEDED)
        return []
    stage = Stage("animate", 2, build.backends.animate.id, ".mp4")
    tasks = []
    for one in posed:
        driver, seed = one.shot.driver, one.shot.seed(build)
        args = {"files": one.still, "driver": driver, "seed": seed}
        params = {"driver": driver, "frames": one.still.frames, "best": one.still.best}
        tasks.append(Task(stage, one.shot.label, make_animation, args, params, one.hashes, seed))
    return [
        Made(one.shot, clip, stage.backend)
        for one, clip in zip(posed, build.engine.map(tasks), strict=True)
        if isinstance(clip, Artefact)
    ]


def make_animation(target: Path, backends: Any, files: PersonFiles, driver: str, seed: int) -> dict:
    animator = backends.animate
    return write_clip(target, animator.animate(files.load().still(), driver, seed), animator.id)
