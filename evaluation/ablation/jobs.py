"""One job: a variant learns a subject from a seed, and answers the questions of the test split.

    <folder>/{stage1, stage2}/history.json    training curves
    <folder>/adapter/                         what was learned
    <folder>/answers.jsonl                    one line per question
    <folder>/head_activation.json
    <folder>/result.json                      numbers, with a key of all that decides them; written last

A job that was killed goes on with what it has: training from its last checkpoint, questions that are not answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...base_model import load_base
from ...files import write_json
from ...session import VideoChat
from ...trainers.adapter import load_subject_adapter
from ...trainers.run import base_settings, hash_of, merged_settings, train_subject
from ..head_activation import write_head_activation
from ..metrics import bleu_counts, bleu_of_counts, existence_scores, normalise_text
from ..runner import Asking
from ..scoring import CATEGORIES, existence_answers
from ..store import Line
from .subjects import Subject
from .variants import Variant, set_subject_tokens, with_origins

FORMAT = 1
LAST_STEPS = 10  # of the last stage, over which loss and activation rate are averaged


@dataclass(frozen=True)
class Job:
    """By value, so that another process can run it.

    base: checkpoint folder or Hub name; base_hash: of its weights. settings: training settings of all variants.
    folder: of the result. features: of encoder states, shared by all jobs.
    """

    variant: Variant
    subject: Subject
    seed: int
    base: str
    base_hash: str
    profile: str
    settings: dict[str, dict[str, Any]]
    folder: Path
    features: Path

    @property
    def key(self) -> str:
        decisive = {
            "format": FORMAT,
            "base": self.base_hash,
            "dataset": self.subject.hash,
            "variant": asdict(self.variant),
            "seed": self.seed,
            "profile": self.profile,
            "settings": merged_settings(base_settings(self.base), self.settings),
        }
        return hash_of(decisive)

    @property
    def title(self) -> str:
        return f"{self.subject.name} seed {self.seed} {self.variant.name}"


def finished(job: Job) -> dict[str, Any] | None:
    """The result of a job that ran to its end with all that decides it unchanged."""
    try:
        result = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.get("key") == job.key else None


def load_base_with(base: str, subject_tokens: int | None):
    """A base and its processor, with another number of subject tokens if one is given."""
    model, processor = load_base(base)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    if subject_tokens is not None:
        set_subject_tokens(model, processor, subject_tokens)
    return model, processor


def run_job(job: Job) -> dict[str, Any]:
    """Trains what is not trained yet, asks, writes `result.json`, and returns what it holds.

    Raises:
        PVChatError: the dataset lacks the variant's clips, a setting is unknown, or a clip cannot be read.
    """
    result = finished(job)
    if result is not None:
        return result
    variant = job.variant
    dataset = job.subject.dataset()
    part = with_origins(dataset, variant.origins)
    settings = merged_settings(base_settings(job.base), job.settings, variant.settings)
    base, processor = load_base_with(job.base, variant.subject_tokens)
    start = time.perf_counter()
    adapter = train_subject(
        base,
        part,
        job.folder,
        processor=processor,
        profile=job.profile,
        routing=variant.routing,
        stages=variant.stages,
        seed=job.seed,
        settings=settings,
        features=job.features,
    )
    trained = time.perf_counter()
    base, processor = load_base_with(job.base, variant.subject_tokens)
    chat = VideoChat(load_subject_adapter(base, adapter), processor, dataset.subject)
    lines = Asking(chat, dataset, job.folder, dataset.split("test"), progress=False).answers()
    rate = write_head_activation(chat, dataset, job.folder)["rate"]
    result = {
        "key": job.key,
        "variant": variant.name,
        "subject": job.subject.key,
        "seed": job.seed,
        "scores": scores_of(lines) | {"activation_rate": rate},
        "training": training_of(job.folder, variant.stages) | {"clips": len(part.split("train"))},
        "seconds": {"train": round(trained - start, 2), "evaluate": round(time.perf_counter() - trained, 2)},
    }
    write_json(job.folder / "result.json", result)
    return result


def scores_of(lines: Sequence[Line]) -> dict[str, float | None]:
    """Existence scores, BLEU of all answers, and per category the share of right answers where the truth is known."""
    scores = existence_scores(existence_answers([line for line in lines if line["category"] == "existence"]))
    counts = bleu_counts([line["answer"] for line in lines], [line["gold"] for line in lines])
    scores |= {f"bleu{order}": bleu_of_counts(counts, order) for order in (1, 4)}
    for category in CATEGORIES:
        own = [line for line in lines if line["category"] == category and line["source"] == "truth"]
        right = [normalise_text(line["answer"]) == normalise_text(line["gold"]) for line in own]
        scores[category] = float(np.mean(right)) if right else None
    return scores


def training_of(folder: Path, stages: Sequence[str]) -> dict[str, float | None]:
    """Optimiser steps, and loss and activation rate at the end of the last stage."""
    paths = [folder / f"stage{stage}" / "history.json" for stage in stages]
    histories = [json.loads(path.read_text(encoding="utf-8"))["steps"] for path in paths]
    last = histories[-1][-LAST_STEPS:]
    rates = [step["active_heads"] for step in last if "active_heads" in step]
    return {
        "steps": sum(map(len, histories)),
        "loss": float(np.mean([step["lm_loss"] for step in last])),
        "activation_rate": float(np.mean(rates)) if rates else None,
    }
