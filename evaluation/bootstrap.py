"""Intervals by resampling videos: questions about one video stand and fall together, so they are drawn together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def clustered_intervals(
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable],
    statistic: Callable[[np.ndarray], dict[str, float | None]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, list[float] | None]:
    """Percentile intervals of several scores at once.

    Videos are drawn with replacement within their stratum (with the subject, without), as the test set fixes how many
    there are of each.

    Args:
        clusters: the video of each of N questions.
        strata: the stratum of each question; the same for all questions of a video.
        statistic: from indices of questions (repeats allowed) to scores by name.
        seed: of the draws.

    Returns:
        `[low, high]` by name; `None` where a stratum has fewer than two videos or a score is not defined.
    """
    members: dict[Hashable, dict[Hashable, list[int]]] = {}
    for index, (cluster, stratum) in enumerate(zip(clusters, strata, strict=True)):
        members.setdefault(stratum, {}).setdefault(cluster, []).append(index)
    names = statistic(np.arange(len(clusters))).keys()
    if not members or min(len(videos) for videos in members.values()) < 2:
        return dict.fromkeys(names)
    rng = np.random.default_rng(seed)
    groups = [[np.array(rows) for _, rows in sorted(videos.items())] for _, videos in sorted(members.items())]
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(resamples):
        index = np.concatenate([group[i] for group in groups for i in rng.integers(len(group), size=len(group))])
        for name, value in statistic(index).items():
            if value is not None:
                drawn[name].append(value)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: np.quantile(values, tails).tolist() if values else None for name, values in drawn.items()}
