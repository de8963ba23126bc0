"""What each row of each ablation table changes against the full system.

A variant that stands in several tables, as the full system does in all, is one variant and is trained once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ...dataset_builder.assemble import LocalDataset, dataset_hash
from ...errors import PVChatError

TOKEN_COUNTS = (0, 4, 8, 12, 16, 20)
NEGATIVES = ("hard_negative", "random_negative")


@dataclass(frozen=True)
class Variant:
    """How a system differs from the full one.

    name: also the name of its folder. routing, stages: as in `train_subject`. settings: training settings on top of
    all others. origins: clips of the training split to keep, None for all. subject_tokens: None for as many as the
    base has.
    """

    name: str
    routing: str = "remoh"
    stages: tuple[str, ...] = ("1", "2")
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: tuple[str, ...] | None = None
    subject_tokens: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table. paper: accuracy that the paper gives for it, if it does."""

    title: str
    variant: Variant
    paper: float | None = None


@dataclass(frozen=True)
class Table:
    """An ablation. about: which question it answers, and what to know when reading it. source: in the paper."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]
    source: str | None = None


FULL = Variant("full")

ATTENTION = Table(
    "attention",
    "Attention of the Q-Former",
    "Routers are inserted when a person is learned; the base's Q-Former is plain.",
    (
        Row("Q-Former", Variant("attention-none", routing="none"), 0.733),
        Row("MoH", Variant("attention-moh", routing="moh"), 0.813),
        Row("ReMoH", FULL, 0.901),
    ),
    "Table 2",
)
LOSSES = Table(
    "losses",
    "Losses on the routers",
    "The paper reports a diverged loss for the first row, and no scores.",
    (
        Row("without SPR and HAE", Variant("losses-none", settings={"train": {"spr": False, "hae": False}})),
        Row("without HAE", Variant("losses-spr", settings={"train": {"hae": False}}), 0.746),
        Row("SPR and HAE", FULL, 0.901),
    ),
    "Table 3",
)
DATA = Table(
    "data",
    "Training clips",
    "The number of epochs stays, so fewer clips are also fewer optimiser steps (see the column). The last row adds "
    "animated stills and animated portraits.",
    (
        Row("originals", Variant("data-original", origins=("original",)), 0.464),
        Row("+ negatives", Variant("data-negatives", origins=("original", *NEGATIVES)), 0.584),
        Row("+ scene positives", Variant("data-scenes", origins=("original", *NEGATIVES, "scene")), 0.781),
        Row("+ animated positives", FULL, 0.901),
    ),
    "Table 4",
)
STAGES = Table(
    "stages",
    "Training stages",
    "Each stage is trained for its own number of epochs; both together take the sum of the steps.",
    (
        Row("image stage", Variant("stages-image", stages=("1",))),
        Row("video stage", Variant("stages-video", stages=("2",))),
        Row("both", FULL),
    ),
)
PAPER_TOKENS = {0: 0.801, 4: 0.871, 8: 0.890, 12: 0.895, 16: 0.922, 20: 0.882}
TABLES = ("attention", "losses", "data", "tokens", "stages")


def tables_for(wanted: Sequence[str | Table], own_tokens: int) -> list[Table]:
    """The tables of these names; a table of one's own stays as it is.

    Args:
        own_tokens: how many subject tokens the base has; with that many, a variant is the full system.

    Raises:
        PVChatError: there is no such table.
    """
    known = {table.name: table for table in (ATTENTION, LOSSES, DATA, STAGES)} | {"tokens": token_table(own_tokens)}
    known |= {table.name: table for table in wanted if isinstance(table, Table)}
    names = [table.name if isinstance(table, Table) else table for table in wanted]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise PVChatError(f"There is no ablation {', '.join(unknown)}; choose from {', '.join(TABLES)}.")
    return [known[name] for name in dict.fromkeys(names)]


def token_table(own_tokens: int) -> Table:
    rows = []
    for count in sorted({*TOKEN_COUNTS, own_tokens}):
        variant = Variant(f"tokens-{count}", subject_tokens=count) if count != own_tokens else FULL
        if count == 0:  # nothing is there to start from a clip
            variant = replace(variant, settings={"adapter": {"subject_init": "base"}})
        rows.append(Row(f"{count} tokens", variant, PAPER_TOKENS.get(count)))
    return Table(
        "tokens",
        "Subject tokens",
        f"The base was trained with {own_tokens}: with another number also the prompt's length is new to it. With 0 "
        f"the name's row of the embedding, LoRA and the routers remain.",
        tuple(rows),
        "supplement, Table 1; one subject",
    )


def with_origins(dataset: LocalDataset, origins: Sequence[str] | None) -> LocalDataset:
    """The dataset with the training clips of these origins only; its test split stays.

    Raises:
        PVChatError: the training split has no clip of one of them.
    """
    if origins is None:
        return dataset
    found = {video.origin for video in dataset.split("train")}
    lacking = [origin for origin in origins if origin not in found]
    if lacking:
        raise PVChatError(
            f"The dataset {dataset.root} has no training clips of origin {', '.join(lacking)}; "
            f"it has {', '.join(sorted(found))}."
        )
    videos = [video for video in dataset.videos if video.split != "train" or video.origin in origins]
    manifest = dataset.manifest | {"dataset_hash": dataset_hash(dataset.subject, videos)}
    return LocalDataset(dataset.subject, manifest, videos, dataset.root)


@torch.no_grad()
def set_subject_tokens(model, processor, count: int, seed: int = 0) -> None:
    """Gives a loaded base, and its processor, another number of subject tokens, in place.

    The first ones are those that the base has. More are drawn around their mean with their spread: equal ones would
    stay equal in training.

    Args:
        model: a `PVChatForConditionalGeneration` without adapter.
        seed: of the tokens that are drawn. The same seed gives the same base, so that an adapter fits it.
    """
    old = model.model.subject_tokens.weight
    kept = old[:count]
    if count > len(old):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count - len(old), old.shape[1], generator=generator).to(old.device, torch.float32)
        mean, spread = old.float().mean(dim=0), old.float().std()
        kept = torch.cat([old, (mean + spread * noise).to(old.dtype)])
    tokens = nn.Embedding(count, old.shape[1], device=old.device, dtype=old.dtype)
    tokens.weight.copy_(kept)
    model.model.subject_tokens = tokens
    model.config.num_subject_tokens = count
    processor.tokens_per_tile = model.config.tokens_per_tile
