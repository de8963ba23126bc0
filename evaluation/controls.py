"""Controls: answers from something that should do worse than a model that learned the subject.

| control | what it shows when it scores well |
|---|---|
| constant_yes, constant_no | the test set is one-sided |
| text_only | the questions give the answers away (the model sees a grey picture) |
| no_adapter | the base can do it without having learned the subject |
| wrong_adapter | anybody's adapter will do: what was learned is not this subject |
| reference_in_prompt | showing the reference clip in the prompt is enough, see `reference.py` |
| reference_as_tokens | the base's own subject tokens for the reference clip are enough, see `reference.py` |
| name_swapped | whoever is asked about, the answer is the same (the question has another name in it) |
| embedding_gate | a comparison of faces with the reference clip is enough |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from ..errors import PVChatError
from ..session import Reply
from .presence import rename
from .scoring import answered
from .store import Line

GREY = (124, 116, 104)  # mean of ImageNet: zeros after normalisation
NO_FACE = -1.0  # lowest cosine, for clips where no person stands out
OTHER_NAMES = ("<Ada>", "<Ben>", "<Cleo>")
LIGHT_EMBEDDER = "head-hog"


def blank_video() -> np.ndarray:
    """(1, 32, 32, 3) uint8, all one grey."""
    return np.full((1, 32, 32, 3), GREY, np.uint8)


class TextOnly:
    """Answers questions about a grey picture; equal questions are asked once."""

    def __init__(self, chat):
        self.chat = chat
        self._known: dict[str, Reply] = {}

    def __call__(self, lines: Sequence[Line]) -> list[Line]:
        new = list(dict.fromkeys(line["question"] for line in lines if line["question"] not in self._known))
        self._known |= zip(new, self.chat.replies([blank_video()], [new])[0], strict=True)
        return [answered(line, self._known[line["question"]]) for line in lines]


def swap_names(lines: Sequence[Line], dataset) -> list[Line]:
    """Existence questions with the name of somebody who is in no clip; `asked_about` says which."""
    taken = {name for video in dataset.videos for name in (video.subject, *video.subjects)}
    other = next(name for name in OTHER_NAMES if name not in taken)
    swapped = [
        {**line, "question": rename(line["question"], line["subject"], other), "asked_about": other}
        for line in lines
        if line["category"] == "existence"
    ]
    return [line for line in swapped if other in line["question"]]


class EmbeddingGate:
    """Compares the face in each clip with the reference clip, by the embedder that the dataset was built with (of the
    dataset builder's light recipe if the dataset does not say).

    The threshold on the cosine is the one with the best balanced accuracy on the training split. The margin is the
    distance to it; it is not a log-odds.

    Args:
        dataset: a `LocalDataset`.

    Raises:
        PVChatError: the training split has no reference clip, or no clip without the subject.
        MissingBackendError: the embedder's packages or weights are not here.
        ImportError: the same, of the light embedder.
    """

    def __init__(self, dataset):
        train = dataset.split("train")
        self.id, self._embed = _embedder(dataset)
        self._references = [row for row in train if row.origin == "original" and row.subject_present]
        self._others = [row for row in train if row not in self._references]
        self._rows = {row.video_id: row for row in dataset.videos}
        if not self._references or len({row.subject_present for row in self._others}) < 2:
            raise PVChatError(
                "the training split lacks the reference clip, or other clips with and without the subject"
            )

    @cached_property
    def _known(self) -> list[np.ndarray]:
        known = [vector for vector in map(self._embed, self._references) if vector is not None]
        if not known:
            raise PVChatError("no person stands out in the reference clip")
        return known

    @cached_property
    def threshold(self) -> float:
        present = np.array([row.subject_present for row in self._others])
        return best_threshold(present, np.array([self.similarity(row) for row in self._others]))

    def similarity(self, row) -> float:
        """Cosine to the reference clip, the closest if there are several."""
        vector = self._embed(row)
        return NO_FACE if vector is None else max(float(vector @ reference) for reference in self._known)

    def __call__(self, lines: Sequence[Line]) -> list[Line]:
        ids = dict.fromkeys(line["video_id"] for line in lines)
        margins = {video_id: self.similarity(self._rows[video_id]) - self.threshold for video_id in ids}
        return [
            {**line, "answer": "Yes." if margin > 0 else "No.", "margin": margin, "by": self.id}
            for line in lines
            for margin in (margins[line["video_id"]],)
        ]


def best_threshold(present: np.ndarray, score: np.ndarray) -> float:
    """Threshold between two neighbouring scores with the best balanced accuracy of `score > threshold`.

    Of equally good ones, the one in the middle.
    """
    values = np.unique(score)
    cuts = np.concatenate([[values[0] - 1e-6], (values[:-1] + values[1:]) / 2])
    accepted = score[None, :] > cuts[:, None]
    quality = accepted[:, present].mean(axis=1) + (~accepted[:, ~present]).mean(axis=1)
    best = np.flatnonzero(quality > quality.max() - 1e-9)
    return float(cuts[best[len(best) // 2]])


def _embedder(dataset) -> tuple[str, Callable]:
    """The embedder's id, and a function from a row to its embedding (D,), `None` when no face is found."""
    from ..dataset_builder.backends.light.embed import FRAMES
    from ..dataset_builder.catalogue import Backends
    from ..dataset_builder.engine import Rejected
    from ..dataset_builder.protocols import Person
    from ..dataset_builder.recipe import Recipe, get_recipe
    from ..dataset_builder.video_io import read_video

    built = dataset.manifest.get("recipe") or {}
    recipe = Recipe.from_json(built) if built.get("backends") else get_recipe("light")
    light = recipe.backends.get("embedder", LIGHT_EMBEDDER) == LIGHT_EMBEDDER
    sampling = {"max_side": 256, "max_frames": FRAMES} if light else {"max_side": 640, "max_frames": 4}
    embedder = Backends(recipe).embedder

    def embed(row) -> np.ndarray | None:
        try:
            return embedder.embed(Person(*read_video(row.path, **sampling)))
        except Rejected:
            return None

    return embedder.id, embed
