"""Who may be a hard negative: nobody who could be the subject, and everybody once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose_others(
    subject: np.ndarray,
    faces: np.ndarray,
    persons: Sequence[str],
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

    Left out are candidates outside the band; the subject; candidates that are the same person as one of the subject's
    own pictures in the gallery (a picture of the subject in another light can fall below `same` with the reference
    and still match another picture of the subject); and second pictures of somebody chosen already.
    """
    faces, subject = np.asarray(faces, np.float64), np.asarray(subject, np.float64)
    if not len(faces):
        return []
    similarity = faces @ subject
    is_subject = similarity >= same
    known = {persons[i] for i in np.flatnonzero(is_subject)}
    linked = (faces @ faces[is_subject].T >= same).any(axis=1)
    low, high = band
    chosen: list[int] = []
    for index in ranking:
        if len(chosen) == k:
            break
        if linked[index] or persons[index] in known or not low <= similarity[index] < high:
            continue
        if any(persons[index] == persons[c] or faces[index] @ faces[c] >= same for c in chosen):
            continue
        chosen.append(index)
    return chosen
