"""Who is in a film: faces are linked to tracklets, tracklets are grouped to people, people are chosen as subjects.

    find_people      film -> people, longest on screen first, each with their boxes
    choose_subjects  people + how the user points at them -> one person per subject

The paper embeds every face and groups them by DBSCAN. Here faces that follow one another are one tracklet, with the
mean of their embeddings, which counts as many times as it has faces; and two faces in one frame are never one person.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import PVChatError
from .backends.faces.boxes import Box, area, iou
from .engine import Rejected
from .protocols import Face, FaceDetector

FACES_PER_SECOND = 8.0  # frames that are looked at, as in the paper
MAX_FACES = 2  # largest faces of a frame that are kept, as in the paper
MIN_SAMPLES = 3  # faces that make a person, as in the paper
FALLBACK_EPS, FALLBACK_SAMPLES = 0.1, 2  # second try when all is noise: the paper goes from eps 0.6, 3 to 0.7, 2

LINK_IOU = 0.3  # overlap from one looked-at frame to the next that makes them one tracklet
SURE_CUT = 0.5  # share of the pixels whose colour changes: a cut whatever comes before and after
LEAST_CUT = 0.06  # the same where nothing else changes
CUT_RATIO = 1.6  # how much larger than every change around it a smaller one must be
CUT_AROUND = 6  # frames before and after that are around
CUT_LEVELS = 16  # of each colour channel
TRACKLET_FACES = 8  # faces of a tracklet that are embedded, evenly spaced

TOGETHER = 2.0  # distance of two tracklets that share a frame: the largest cosine distance


class FaceDescriber(Protocol):
    """A FaceEmbedder that takes faces already found; those of backends.faces do. eps: largest cosine distance of
    neighbours in DBSCAN."""

    id: str
    different: float
    eps: float
    detector: FaceDetector

    def embed_faces(self, frames: Sequence[np.ndarray], faces: Sequence[Face]) -> np.ndarray: ...


@dataclass(frozen=True)
class Tracklet:
    """One face followed through one shot: the frames looked at (indices in the film), the face in each, and the mean
    embedding (D,) of length 1."""

    frames: tuple[int, ...]
    faces: tuple[Face, ...]
    embedding: np.ndarray

    def key(self) -> tuple:
        """Sorts tracklets by time and place."""
        return self.frames, self.faces[0].box


@dataclass(frozen=True)
class FoundPerson:
    """tracklets: in order of time, at most one per frame. embedding: (D,) of length 1. seconds: on screen."""

    tracklets: tuple[Tracklet, ...]
    embedding: np.ndarray
    seconds: float

    @property
    def faces(self) -> dict[int, Face]:
        """Frame index -> face, for the frames that were looked at."""
        return {i: face for t in self.tracklets for i, face in zip(t.frames, t.faces, strict=True)}

    def box_at(self, frame: int) -> Box | None:
        """The box in any frame, interpolated between frames that were looked at; None where the person is not seen."""
        for t in self.tracklets:
            if t.frames[0] <= frame <= t.frames[-1]:
                sides = np.array([face.box for face in t.faces])
                return tuple(float(np.interp(frame, t.frames, side)) for side in sides.T)
        return None


@dataclass(frozen=True)
class Wish:
    """How the user points at a subject: a box (x0, y0, x1, y1) in pixels of the first frame, or the embedding (D,) of
    a photo by the same embedder. Neither: whoever is longest on screen."""

    box: Box | None = None
    photo: np.ndarray | None = None

    def __post_init__(self):
        if self.box is None:
            return
        if self.photo is not None:
            raise PVChatError("A subject is pointed at by a box or by a photo, not by both.")
        if len(self.box) != 4 or not all(map(math.isfinite, self.box)) or not area(self.box):
            raise PVChatError(f"The subject's box must be x0,y0,x1,y1 with x0 < x1 and y0 < y1, got {self.box}.")


def find_people(
    frames: np.ndarray,
    fps: float,
    embedder: FaceDescriber,
    *,
    rate: float = FACES_PER_SECOND,
    max_faces: int | None = MAX_FACES,
) -> list[FoundPerson]:
    """frames (T, H, W, 3) uint8 -> people, longest on screen first.

    rate: frames per second that are looked at. max_faces: largest faces of each frame that are kept; None = all.
    Raises engine.Rejected when no face is found, PVChatError for numbers that are not positive.
    """
    if not (fps > 0 and rate > 0 and (max_faces is None or max_faces > 0)):
        raise PVChatError(f"fps, rate and max_faces must be positive, got {fps}, {rate} and {max_faces}.")
    looked_at = sample_frames(len(frames), fps, rate)
    seen = frames[looked_at]
    found = [
        sorted(faces, key=lambda f: (-area(f.box), f.box))[:max_faces] for faces in embedder.detector.detect(seen)
    ]  # fmt: skip
    tracklets = []
    for chain in link_faces(found, shot_numbers(frames)[looked_at]):
        positions, faces = zip(*chain, strict=True)
        few = np.unique(np.linspace(0, len(chain) - 1, TRACKLET_FACES).round().astype(int))
        vectors = embedder.embed_faces([seen[positions[i]] for i in few], [faces[i] for i in few])
        tracklets.append(Tracklet(tuple(int(looked_at[p]) for p in positions), faces, _unit(vectors.sum(0))))
    if not tracklets:
        raise Rejected("no face found")
    seconds = len(frames) / fps / len(looked_at)
    return group_tracklets(tracklets, embedder.eps, seconds)


def sample_frames(num_frames: int, fps: float, rate: float) -> np.ndarray:
    """Indices of `rate` frames per second; every frame when the film has fewer."""
    step = max(1.0, fps / rate)
    return (np.arange(math.ceil(num_frames / step)) * step).astype(int)


def shot_numbers(frames: np.ndarray) -> np.ndarray:
    """frames (T, H, W, 3), all that the film has -> (T,): which shot each belongs to, from 0.

    What is compared are colour histograms: they hardly notice that something moves, and do notice another person in
    the same room. A cut is a change that stands out from those around it; where a camera is torn about, all are large.
    On drawn and photographed clips of 8 to 50 frames 147 of 150 cuts within one room were found, and none in 157 clips
    without a cut, fast motion among them.
    """
    change = colour_changes(frames)
    cuts = np.zeros(len(frames), int)
    for t, own in enumerate(change):
        around = np.concatenate([change[max(0, t - CUT_AROUND) : t], change[t + 1 : t + 1 + CUT_AROUND]])
        cuts[t + 1] = own > SURE_CUT or own > max(LEAST_CUT, CUT_RATIO * around.max(initial=0.0))
    return np.cumsum(cuts)


def colour_changes(frames: np.ndarray) -> np.ndarray:
    """frames (T, H, W, 3) -> (T - 1,): share of the pixels, 0 to 1, whose colour one frame has and the next has not.
    Histograms are blurred by one level, so that noise at the border of two levels is no change."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    shares = []
    for frame in frames:
        small = Image.fromarray(frame).resize((64, 64), Image.Resampling.BOX)
        levels = np.asarray(small, int) * CUT_LEVELS // 256
        counts = np.bincount((levels @ [CUT_LEVELS**2, CUT_LEVELS, 1]).ravel(), minlength=CUT_LEVELS**3)
        cube = (counts / counts.sum()).reshape((CUT_LEVELS,) * 3)
        shares.append(gaussian_filter(cube, 1.0, mode="reflect").ravel())
    return abs(np.diff(shares, axis=0)).sum(1) / 2


def link_faces(found: Sequence[Sequence[Face]], shots: Sequence[int]) -> list[list[tuple[int, Face]]]:
    """Faces of every frame -> tracklets as lists of (position in `found`, face); best overlap first."""
    done: list[list[tuple[int, Face]]] = []
    open_chains: list[list[tuple[int, Face]]] = []
    for t, faces in enumerate(found):
        if t and shots[t] != shots[t - 1]:
            open_chains = []
        overlaps = [
            (iou(chain[-1][1].box, f.box), c, i) for c, chain in enumerate(open_chains) for i, f in enumerate(faces)
        ]
        taken: dict[int, int] = {}  # face -> chain
        for overlap, c, i in sorted(overlaps, key=lambda o: (-o[0], open_chains[o[1]][-1][1].box, faces[o[2]].box)):
            if overlap >= LINK_IOU and i not in taken and c not in taken.values():
                taken[i] = c
        chains = [open_chains[taken[i]] if i in taken else [] for i in range(len(faces))]
        done += [chain for chain in chains if not chain]
        for chain, face in zip(chains, faces, strict=True):
            chain.append((t, face))
        open_chains = chains
    return done


def group_tracklets(tracklets: Sequence[Tracklet], eps: float, seconds_per_frame: float) -> list[FoundPerson]:
    """DBSCAN on cosine distances; tracklets that belong to nobody (fewer than 3 faces in all) are dropped.

    When all are dropped, a wider eps and 2 faces are tried, then all are one group, as in the paper. A group that
    shows two faces in one frame is divided. The order of the tracklets does not matter.
    """
    from sklearn.cluster import DBSCAN

    tracklets = sorted(tracklets, key=Tracklet.key)
    vectors = np.stack([t.embedding for t in tracklets]).astype(np.float64)
    distances = (1 - vectors @ vectors.T).clip(0, TOGETHER)
    for i, a in enumerate(tracklets):
        for j in range(i):
            if _overlap(a, tracklets[j]):
                distances[i, j] = distances[j, i] = TOGETHER
    np.fill_diagonal(distances, 0)
    weights = [len(t.frames) for t in tracklets]
    labels = np.full(len(tracklets), -1)
    for radius, samples in ((eps, MIN_SAMPLES), (eps + FALLBACK_EPS, FALLBACK_SAMPLES)):
        if (labels < 0).all():
            clustering = DBSCAN(eps=radius, min_samples=samples, metric="precomputed")
            labels = clustering.fit(distances, sample_weight=weights).labels_
    if (labels < 0).all():
        labels[:] = 0
    people = []
    for label in range(labels.max() + 1):
        for part in _divide([t for t, own in zip(tracklets, labels, strict=True) if own == label]):
            seconds = sum(len(t.frames) for t in part) * seconds_per_frame
            people.append(FoundPerson(tuple(sorted(part, key=Tracklet.key)), _mean(part), seconds))
    return sorted(people, key=lambda person: (-person.seconds, person.tracklets[0].key()))


def choose_subjects(
    people: Sequence[FoundPerson], wishes: Sequence[Wish], *, different: float
) -> list[FoundPerson]:  # fmt: skip
    """One person per wish, never the same twice; wishes without box and photo get whoever is left, longest first.

    different: the embedder's cosine below which a photo does not show the person.
    Raises PVChatError when a box touches no face of the first frame, a photo is like nobody, two wishes mean one
    person, or there are fewer people than wishes.
    """
    if len(people) < len(wishes):
        raise PVChatError(f"{len(wishes)} subjects were asked for, but the video shows {len(people)}.")
    chosen: list[FoundPerson | None] = []
    for wish in wishes:
        if wish.box is not None:
            chosen.append(_in_box(people, wish.box))
        elif wish.photo is not None:
            chosen.append(_like_photo(people, wish.photo, different))
        else:
            chosen.append(None)
    named = [id(person) for person in chosen if person is not None]
    if len(set(named)) < len(named):
        raise PVChatError("Two subjects point at the same person of the video; give each a box or photo of their own.")
    rest = iter([person for person in people if id(person) not in named])
    return [next(rest) if person is None else person for person in chosen]


def _in_box(people: Sequence[FoundPerson], box: Box) -> FoundPerson:
    first = {i: person.faces[0].box for i, person in enumerate(people) if 0 in person.faces}
    best = max(first, key=lambda i: iou(first[i], box), default=None)
    if best is None or not iou(first[best], box):
        seen = "; ".join(",".join(f"{side:.0f}" for side in other) for other in first.values()) or "none"
        raise PVChatError(
            f"The subject's box {','.join(f'{side:g}' for side in box)} touches no face of the first frame "
            f"(faces there: {seen})."
        )
    return people[best]


def _like_photo(people: Sequence[FoundPerson], photo: np.ndarray, different: float) -> FoundPerson:
    photo = np.asarray(photo, np.float64)
    if photo.shape != people[0].embedding.shape:
        raise PVChatError(
            f"The photo's embedding has shape {photo.shape}, the people's {people[0].embedding.shape}; "
            f"use one embedder for both."
        )
    cosines = [float(person.embedding @ photo) for person in people]
    best = int(np.argmax(cosines))
    if cosines[best] < different:
        raise PVChatError(
            f"The reference photo is like nobody in the video (similarity {cosines[best]:.2f}, at least "
            f"{different:.2f} is needed); use another photo or the subject's box."
        )
    return people[best]


def _divide(group: list[Tracklet]) -> list[list[Tracklet]]:
    """Parts without two faces in one frame: the longest tracklets first, each to the most similar part it fits."""
    parts: list[list[Tracklet]] = []
    for tracklet in sorted(group, key=lambda t: (-len(t.frames), t.key())):
        free = [part for part in parts if not any(_overlap(tracklet, other) for other in part)]
        if free:
            max(free, key=lambda part: float(_mean(part) @ tracklet.embedding)).append(tracklet)
        else:
            parts.append([tracklet])
    return parts


def _overlap(a: Tracklet, b: Tracklet) -> bool:
    return not set(a.frames).isdisjoint(b.frames)


def _mean(tracklets: Sequence[Tracklet]) -> np.ndarray:
    return _unit(sum(len(t.frames) * t.embedding.astype(np.float64) for t in tracklets))


def _unit(vector: np.ndarray) -> np.ndarray:
    vector = np.asarray(vector, np.float64)
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
