"""portraits: the stills that are animated, new ones or the best one there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Artefact, Stage, Task, derive_seed
from ..people import PersonFiles
from ..scenes import draw_scene
from .common import NOT_NEEDED, Build, Shot


@dataclass(frozen=True)
class Posed:
    """A shot with the still that it animates, and the sha256 of what decides that still."""

    shot: Shot
    still: PersonFiles
    hashes: tuple[str, ...]


def portraits(build: Build, shots: Sequence[Shot]) -> list[Posed]:
    """The stills of the shots in the styles "portrait" and "animated"; shots of one portrait share it."""
    shots = [shot for shot in shots if shot.style in ("portrait", "animated")]
    tasks = {_key(shot): _portrait(build, shot) for shot in shots if shot.style == "portrait"}
    if not tasks:
        build.engine.skip("portraits", NOT_NEEDED)
    stills = dict(zip(tasks, build.engine.map(list(tasks.values())), strict=True))
    posed = []
    for shot in shots:
        if shot.style == "animated":
            posed.append(Posed(shot, shot.footage.files, shot.footage.hashes))
        elif isinstance(still := stills[_key(shot)], Artefact):
            posed.append(Posed(shot, PersonFiles(still.path, still.meta["fps"], 1), (still.sha256,)))
        else:
            build.engine.drop("portraits", shot.label, "its portrait was dropped")
    return posed


def _key(shot: Shot) -> tuple:
    return shot.parent, shot.footage.label, shot.still


def _portrait(build: Build, shot: Shot) -> Task:
    own = () if len(build.subjects) == 1 or not shot.present else (shot.subject,)
    seed = derive_seed(build.seed, shot.parent, "portrait", shot.still, *own)
    noun = build.noun(shot.footage)
    prompt = "" if noun == "person" else draw_scene(seed, noun).prompt  # "": the generator draws one by the seed
    return Task(
        Stage("portraits", 1, build.backends.portrait.id, ".npy"),
        f"portrait {shot.still} of {shot.footage.label}",
        make_portrait,
        {"files": shot.footage.files, "prompt": prompt, "seed": seed},
        {"prompt": prompt, "frames": shot.footage.frames, "best": shot.footage.best},
        shot.footage.hashes,
        seed,
    )


def make_portrait(target: Path, backends: Any, files: PersonFiles, prompt: str, seed: int) -> dict:
    """Writes (1, H, W, 3), or (1, H, W, 4) with the matte."""
    still = backends.portrait.generate(files.load(), prompt, seed)
    pixels = still.frames[:1]
    if still.alpha is not None:
        pixels = np.concatenate([pixels, still.alpha[:1, ..., None]], -1)
    np.save(target, pixels)
    return {"fps": still.fps}
