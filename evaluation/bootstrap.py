"""Intervals and paired tests by resampling videos: questions about one video stand and fall together.

Subjects are resampled as well where there are several: subjects with replacement, then the videos of each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
PERMUTATIONS = 10_000
BLOCK = 1000  # permutations at a time
LEVEL = 0.95


def clustered_intervals(
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable],
    statistic: Callable[[np.ndarray], dict[str, float | None]],
    *,
    subjects: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, list[float] | None]:
    """Percentile intervals of several scores at once.

    Videos are drawn with replacement within their stratum (with the subject, without), as the test set fixes how many
    there are of each. Several subjects are drawn with replacement first.

    Args:
        clusters: the video of each of N questions.
        strata: the stratum of each question; the same for all questions of a video.
        statistic: from indices of questions (repeats allowed) to scores by name.
        subjects: the subject of each question; the same for all questions of a video. `None`: one subject.
        seed: of the draws.

    Returns:
        `[low, high]` by name; `None` where a stratum has fewer than two videos or a score is not defined.
    """
    subjects = [None] * len(clusters) if subjects is None else subjects
    members: dict[Hashable, dict[Hashable, dict[Hashable, list[int]]]] = {}
    for index, (subject, stratum, cluster) in enumerate(zip(subjects, strata, clusters, strict=True)):
        members.setdefault(subject, {}).setdefault(stratum, {}).setdefault(cluster, []).append(index)
    names = statistic(np.arange(len(clusters))).keys()
    if not members or any(len(videos) < 2 for groups in members.values() for videos in groups.values()):
        return dict.fromkeys(names)
    rng = np.random.default_rng(seed)
    people = [
        [[np.array(rows) for _, rows in sorted(videos.items())] for _, videos in sorted(groups.items())]
        for groups in members.values()
    ]
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(resamples):
        chosen = people if len(people) == 1 else [people[i] for i in rng.integers(len(people), size=len(people))]
        index = np.concatenate(
            [group[i] for groups in chosen for group in groups for i in rng.integers(len(group), size=len(group))]
        )
        for name, value in statistic(index).items():
            if value is not None:
                drawn[name].append(value)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: np.quantile(values, tails).tolist() if values else None for name, values in drawn.items()}


def paired_difference(
    clusters: Sequence[Hashable],
    strata: Sequence[bool],
    first: Sequence[float],
    second: Sequence[float],
    *,
    subjects: Sequence[Hashable] | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> dict[str, Any] | None:
    """By how much one system beats another in balanced accuracy on the same questions, and whether that is chance.

    If the systems were equally good, their answers about a video could be exchanged. So the test swaps them for
    randomly chosen videos and counts how often the difference is at least as large as the one found (two-sided; the
    found one counts as a draw, so p is never 0).

    Args:
        clusters, subjects: as in `clustered_intervals`.
        strata: (N,) whether the subject is there.
        first, second: (N,) how right each system is on each question, 0 to 1.
        permutations: how many; a multiple of 1000.

    Returns:
        `difference` (first minus second), `interval`, `p`; `None` when a stratum has no question.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    present = np.asarray(strata, bool)
    if not len(present) or present.all() or not present.any():
        return None
    gain = first - second

    def difference(index: np.ndarray) -> dict[str, float | None]:
        sides = [gain[index][present[index] == side] for side in (True, False)]
        return {"difference": None if not all(map(len, sides)) else float(sum(side.mean() for side in sides) / 2)}

    # The difference is a sum over videos, and swapping a video's answers turns the sign of its share.
    weight = gain / np.where(present, 2 * present.sum(), 2 * (~present).sum())
    videos = list(zip([None] * len(clusters) if subjects is None else subjects, clusters, strict=True))
    places = {video: place for place, video in enumerate(dict.fromkeys(videos))}
    share = np.bincount([places[video] for video in videos], weight, len(places))
    found = abs(share.sum())
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(0, permutations, BLOCK):
        signs = rng.integers(0, 2, (min(BLOCK, permutations), len(share)), np.int8) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ share) >= found - 1e-12))
    interval = clustered_intervals(clusters, present.tolist(), difference, subjects=subjects, seed=seed)["difference"]
    return {
        "difference": float(share.sum()),
        "interval": interval,
        "p": (extreme + 1) / (permutations + 1),
    }
