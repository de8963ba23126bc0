"""What a recipe costs: which backend has how much to do, from the times and the memory in the catalogue."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from .catalogue import ELSEWHERE, Entry, chosen, entry
from .recipe import NEGATIVE_ORIGINS, POSITIVE_ORIGINS, Recipe


@dataclass(frozen=True)
class Cost:
    """What one backend has to do. seconds: in all, None = nobody measured; on `where`. memory_gb: of the GPU, None =
    it runs on a CPU, or nobody measured. source: of these two. missing: what to install, "" = it is here."""

    stage: str
    backend: str
    items: int
    seconds: float | None
    where: str
    memory_gb: float | None
    source: str
    missing: str


def costs(recipe: Recipe, gallery: int | None = None) -> list[Cost]:
    """What the backends of a build have to do, by stage, when every clip passes at once.

    gallery: how many files a light gallery has; None = as many as people are needed.
    """
    styles = Counter(recipe.style(row, i) for row in recipe.rows for i in range(row.count) if row.origin != "original")
    generated = styles["scene"] + styles["animated"] + styles["portrait"]
    stills = sum(_stills(recipe, row) for row in recipe.rows)
    needed = sum(row.people or row.count for row in recipe.rows if row.origin in NEGATIVE_ORIGINS)
    people = 1 + (needed if gallery is None else gallery)
    asked = [row for row in recipe.rows if row.origin in POSITIVE_ORIGINS and row.questions.descriptive]
    described = sum(row.count for row in asked)
    items = {
        ("faces", "detector"): people,
        ("identities", "embedder"): people,
        ("select", "quality"): people,
        ("attributes", "attributes"): 1,
        ("scenes", "scene"): styles["scene"],
        ("portraits", "portrait"): stills,
        ("animate", "animate"): styles["animated"] + styles["portrait"],
        ("verify", "embedder"): generated + styles["oracle"] + styles["found"],
        ("questions", "writer"): described,
        ("refine", "refiner"): described,
    }
    names = chosen(recipe)
    return [
        _cost(stage, names[role], entry(role, names[role]), count)
        for (stage, role), count in items.items()
        if role in names
    ]


def stages_on_gpus(recipe: Recipe, writer: bool = False) -> set[str]:
    """The stages whose backends run on a GPU. writer: whether the recipe's writer is replaced by one that does, where
    there is a GPU."""
    found = {cost.stage for cost in costs(recipe) if cost.where not in ("CPU", ELSEWHERE)}
    found |= {"questions"} if writer else set()
    return found | ({"attributes"} if "questions" in found else set())  # the writer is asked about them


def _stills(recipe: Recipe, row: Any) -> int:
    """How many different portraits a row needs."""
    portraits = sum(recipe.style(row, index) == "portrait" for index in range(row.count))
    return min(portraits, row.people or portraits) if row.origin == "portrait" else portraits


def _cost(stage: str, name: str, found: Entry, items: int) -> Cost:
    seconds = None if found.seconds is None else round(items * found.seconds, 1)
    missing = found.pip if found.missing else ""
    return Cost(stage, name, items, seconds, found.where, found.memory_gb, found.source, missing)
