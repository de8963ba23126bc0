"""Files of the cartoon world: what a user would have in hand, and what a fair test needs.

For one cast member: a reference clip, a gallery of other people (relatives who differ in one or two features, and
strangers), and test clips whose clothes, places and actions differ from the reference's and whose look-alikes are in
no gallery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .cast import SCENE_FEATURES, CastMember, Identity, Scene, cast, family
from .render import render_clip, render_video
from .truth import activity, clothing, location

REFERENCE_SECONDS, GALLERY_SECONDS = 2.0, 1.5
FPS = 12
GALLERY_RELATIVES, GALLERY_STRANGERS = 36, 40


def person_seed(identity: Identity, *salt: str | int) -> np.random.Generator:
    """Randomness that depends on the person and a purpose only."""
    text = "|".join([*identity.to_dict().values(), *map(str, salt)])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def reference_scene(member: CastMember, seed: int = 0) -> Scene:
    """The one scene in which the world shows the member before they are learned."""
    return Scene.random(person_seed(member.identity, "reference", seed))


def write_reference(member: CastMember, path: str | Path, seed: int = 0) -> Path:
    """Renders the reference clip: 2 s, 256 px, h264."""
    path = Path(path)
    render_video(path, member.identity, reference_scene(member, seed), seconds=REFERENCE_SECONDS, fps=FPS)
    return path


def write_gallery(
    member: CastMember,
    folder: str | Path,
    seed: int = 0,
    relatives: int = GALLERY_RELATIVES,
    strangers: int = GALLERY_STRANGERS,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Renders a folder of other people, one clip each; files that are there already are kept.

    Relatives differ from the member in one or two features (`relatives` of them), strangers in four or more. File
    names tell nothing about which is which.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    people = [*gallery_relatives(member, seed, relatives), *gallery_strangers(member, seed, strangers)]
    for index, identity in enumerate(people):
        rng = person_seed(identity, "gallery", seed)
        path = folder / f"{rng.integers(2**32):08x}.mp4"
        if not path.exists():
            render_video(path, identity, Scene.random(rng), seconds=GALLERY_SECONDS, fps=FPS)
        if progress is not None:
            progress(index + 1, len(people))
    return folder


def gallery_relatives(member: CastMember, seed: int, count: int) -> list[Identity]:
    return family(member.identity, count, person_seed(member.identity, "relatives", seed))


def gallery_strangers(member: CastMember, seed: int, count: int) -> list[Identity]:
    return strangers_of(member, cast(2 * count, seed=seed + 1000, held_out=False), count)


def strangers_of(member: CastMember, people: Sequence[CastMember], count: int) -> list[Identity]:
    """The first `count` of `people` who differ from the member in four features or more."""
    return [p.identity for p in people if p.identity.distance(member.identity) >= 4][:count]


def write_population(
    folder: str | Path, seed: int = 0, people: int = 160, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Renders a gallery of random people for a reference clip of whom only the pixels are known."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, people])
    for index in range(people):
        identity, scene = Identity.random(rng), Scene.random(rng)
        path = folder / f"{index:04d}.mp4"
        if not path.exists():
            render_video(path, identity, scene, seconds=GALLERY_SECONDS, fps=FPS)
        if progress is not None:
            progress(index + 1, people)
    return folder


def write_test_clips(
    member: CastMember, folder: str | Path, seed: int = 0, positives: int = 20
) -> list[tuple[Path, bool, str, dict[str, str]]]:
    """Renders the test: `positives` clips of the member, half as many of unseen look-alikes, half of unseen strangers.

    Returns (path, subject present, origin, known answers) of every clip, as `build_dataset(test_clips=...)` takes
    them. No clip shares clothes, place or action with the reference.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = person_seed(member.identity, "test", seed)
    known = {*gallery_relatives(member, seed, GALLERY_RELATIVES), member.identity}
    alike = unseen(family(member.identity, GALLERY_RELATIVES + positives, rng), known, positives // 2)
    others = strangers_of(member, cast(2 * positives, seed=seed + 2000, held_out=True), positives - len(alike))
    people = [
        *[(member.identity, True, "user")] * positives,
        *[(identity, False, "hard_negative") for identity in alike],
        *[(identity, False, "random_negative") for identity in others],
    ]
    clips = []
    for index, (identity, present, origin) in enumerate(people):
        scene = other_scene(reference_scene(member, seed), rng)
        path = folder / f"{index:03d}.mp4"
        if not path.exists():
            render_video(path, identity, scene, seconds=GALLERY_SECONDS, fps=FPS)
        answers = {"appearance": clothing(scene), "action": activity(scene), "location": location(scene)}
        named = {k: v.replace("The person", "{name}") for k, v in answers.items()} if present else {}
        clips.append((path, present, origin, named))
    return clips


def unseen(candidates: Sequence[Identity], known: set[Identity], count: int) -> list[Identity]:
    """The first `count` candidates that are nobody in `known`."""
    fresh = [identity for identity in candidates if identity not in known]
    if len(fresh) < count:
        raise ValueError(f"{count} unseen look-alikes are needed, there are {len(fresh)}")
    return fresh[:count]


def other_scene(reference: Scene, rng: np.random.Generator) -> Scene:
    """A random scene that shares no garment, colour, place or action with `reference`."""
    while True:
        scene = Scene.random(rng)
        if all(getattr(scene, name) != getattr(reference, name) for name in SCENE_FEATURES):
            return scene


def oracle_source(member: CastMember, seed: int = 0):
    """The renderer in the role of a perfect generator, for ablations: `source(origin, index, seed)`.

    It draws the true identity in new scenes, which the light backends cannot; results made with it are labelled so.
    """

    def source(origin: str, index: int, clip_seed: int) -> tuple[np.ndarray, float, dict[str, str]]:
        scene = Scene.random(np.random.default_rng([clip_seed, index]))
        frames = render_clip(member.identity, scene, num_frames=int(FPS * GALLERY_SECONDS), size=256)
        answers = {"appearance": clothing(scene), "action": activity(scene), "location": location(scene)}
        return frames, FPS, {k: v.replace("The person", "{name}") for k, v in answers.items()}

    return source


__all__ = [
    "gallery_relatives",
    "oracle_source",
    "reference_scene",
    "write_gallery",
    "write_population",
    "write_reference",
    "write_test_clips",
]
