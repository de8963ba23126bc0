"""Who may be a hard negative: nobody who could be the subject, and everybody once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def are_subject(subjects: np.ndarray, faces: np.ndarray, same: float) -> np.ndarray:
    """Which faces (N, D) show one of the subjects (S, D), all of length 1 -> (N,) bool.

    Those are the faces at or above `same` with a subject; and those that are so with one of these: a picture of the
    subject in another light can fall below `same` with the reference and still match another picture of the subject.
    """
    faces, subjects = np.asarray(faces, np.float64), np.asarray(subjects, np.float64)
    sure = faces[(faces @ subjects.T >= same).any(axis=1)]
    return (faces @ np.concatenate([subjects, sure]).T >= same).any(axis=1)


def choose_others(
    subject: np.ndarray,
    faces: np.ndarray,
    persons: Sequence[Hashable],
    ranking: Sequence[int],
    *,
    same: float,
    band: tuple[float, float],
    k: int,
) -> list[int]:
    """Indices of up to k candidates, in the order of the ranking.

    subject: (D,), faces: (N, D), all of length 1. persons: who the source says each candidate is.
    same: cosine at or above which two embeddings are one person. band: cosines with the subject that are allowed, from
    the first on and below the second.

    Left out are candidates outside the band; the subject (see `are_subject`), and whoever the source says is the same
    person; and second pictures of somebody chosen already.
    """
    faces, subject = np.asarray(faces, np.float64), np.asarray(subject, np.float64)
    if not len(faces):
        return []
    similarity = faces @ subject
    is_subject = are_subject(subject[None], faces, same)
    known = {persons[i] for i in np.flatnonzero(is_subject)}
    low, high = band
    chosen: list[int] = []
    for index in ranking:
        if len(chosen) == k:
            break
        if persons[index] in known or not low <= similarity[index] < high:
            continue
        if any(persons[index] == persons[c] or faces[index] @ faces[c] >= same for c in chosen):
            continue
        chosen.append(index)
    return chosen
