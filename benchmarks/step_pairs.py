"""The same training step taken in two ways: what one costs against the other.

At tiny size both really run, in turn. At full size their FLOPs and bytes are counted from shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pvchat.dataset_builder import load_local
from pvchat.dataset_builder.recipe import get_recipe
from pvchat.modeling_pvchat.processing_pvchat import PVChatProcessor
from pvchat.session import EMBEDDED_BASE
from pvchat.trainers.collator import IGNORED, training_rows
from pvchat.trainers.config import Stage2Config
from pvchat.trainers.features import FeatureCache
from pvchat.trainers.video_stage import VideoStageTrainer

from .cost_setup import QUESTION_TOKENS, config_of, make_model, make_processor, make_rows
from .counters import LiveBytes, clock, count_flops, optimizer_tensors
from .shapes_only import ShapesOnly

QUESTIONS = 18  # of a clip, on average: 1,455 of 81 clips
EPOCHS = 7  # of stage 2
BATCH = 4  # clips of an update by default
CLIPS = 16  # drawn; the first has 30 questions, the others 15, as in the paper's recipe
VISION_LAYERS = {"tiny": 1, "full": 2}  # that the profile `paper` trains; tiny has 5 blocks, full 39

Rows = list[dict[str, Any]]


@dataclass
class Side:
    """A way to take some steps.

    Args:
        trainer: ready to step.
        steps: the steps, each of them one or more batches whose gradients are added up.
        checkpointing: recompute the activations of each layer.
    """

    trainer: VideoStageTrainer
    steps: list[list[Rows]]
    checkpointing: bool = False

    def run(self) -> None:
        """Reads, forward, backward, update, of every step."""
        self.set_checkpointing()
        trainer = self.trainer
        for micro_batches in self.steps:
            batches, count = self.collated(micro_batches)
            for batch in batches:
                trainer.training_step(trainer.model, batch, count)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

    def losses(self) -> list[float]:
        """Loss on the answers of each step, without an update."""
        self.set_checkpointing()
        trainer, found = self.trainer, []
        trainer.model.train()
        for micro_batches in self.steps:
            batches, count = self.collated(micro_batches)
            trainer._terms.clear()
            for batch in batches:
                trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
            found.append(sum(terms["lm_loss"] for terms in trainer._terms))
            trainer._terms.clear()
        return found

    def collated(self, micro_batches: list[Rows]) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """The batches of a step and how many answer tokens they have together."""
        self.trainer.current_gradient_accumulation_steps = len(micro_batches)
        batches = [self.trainer.data_collator(rows) for rows in micro_batches]
        return batches, sum((batch["labels"] != IGNORED).sum() for batch in batches)

    def set_checkpointing(self) -> None:
        set_checkpointing(self.trainer, self.checkpointing)

    def peak(self) -> int:
        """Most bytes of tensors during the steps, weights and optimiser included."""
        model = self.trainer.model
        with LiveBytes([*model.parameters(), *model.buffers(), *optimizer_tensors(self.trainer.optimizer)]) as memory:
            self.run()
        return memory.peak


def set_checkpointing(trainer, on: bool) -> None:
    """Activation checkpointing of the trainer's model, which may be shared, on or off."""
    base = trainer.model.get_base_model()
    if on:
        base.activation_checkpointing_enable()
    else:
        base.activation_checkpointing_disable()


def compare(without: Side, with_it: Side, repeats: int) -> dict[str, float]:
    """How many times more the side without the means takes: wall time, processor time, FLOPs, bytes at the peak."""
    ratios = in_turn(without.run, with_it.run, repeats)
    ratios["flops"] = count_flops(without.run) / count_flops(with_it.run)
    ratios["bytes"] = without.peak() / with_it.peak()
    return ratios


def in_turn(without: Callable[[], Any], with_it: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Both in turn, after one of each to warm up: how many times more the first one takes at its fastest, in wall time
    and in processor time, and the seconds of both."""
    taken: dict[Callable, list[tuple[float, float]]] = {without: [], with_it: []}
    for repeat in range(repeats + 1):
        for function, times in taken.items():
            start, worked = clock(), time.process_time()
            function()
            if repeat:
                times.append((clock() - start, time.process_time() - worked))
    slow, fast = ([min(values) for values in zip(*times, strict=True)] for times in taken.values())
    return {
        "time": slow[0] / fast[0],
        "processor": slow[1] / fast[1],
        "seconds_without": slow[0],
        "seconds_with": fast[0],
    }


class TinySteps:
    """Trainers of both profiles on drawn clips, all of one size.

    Args:
        folder: for clips and encoder states.
    """

    def __init__(self, folder: Path, seed: int, clips: int = CLIPS):
        self.folder = folder
        self.seed = seed
        self.processor = make_processor(config_of("tiny"))
        self.rows = make_rows(folder, described=1, others=clips - 1, seed=seed)
        self.clip = first_questions(self.rows[0], QUESTIONS)
        self.models: dict[str, Any] = {}

    def model(self, profile: str):
        """A new model, or that of an earlier call; its weights are those of the last step taken."""
        if profile not in self.models:
            self.models[profile] = make_model("tiny", profile, VISION_LAYERS["tiny"], self.seed)
        return self.models[profile]

    def cache(self, profile: str, rows: Rows) -> FeatureCache:
        """Filled with the states of these clips."""
        inner = self.model(profile).get_base_model().model
        blocks = len(inner.vision_tower.layers) - (VISION_LAYERS["tiny"] if profile == "paper" else 0)
        return FeatureCache(inner, self.processor, self.folder / "features", blocks, False).fill(rows)

    def side(
        self,
        steps: list[list[Rows]],
        profile: str = "light",
        trainer_class: type[VideoStageTrainer] = VideoStageTrainer,
        cached: bool = True,
        grouped: bool = True,
        checkpointing: bool = False,
        model=None,
    ) -> Side:
        """A way to take these steps; by default with everything that the trainers have on."""
        rows = [row for micro_batches in steps for batch in micro_batches for row in batch]
        trainer = trainer_class(
            self.model(profile) if model is None else model,
            Stage2Config(str(self.folder / "out"), disable_tqdm=True, seed=self.seed),
            rows,
            self.processor,
            profile,
            features=self.cache(profile, rows) if cached else None,
            grouped=grouped,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.create_optimizer()
        return Side(trainer, steps, checkpointing)


class FullSteps:
    """Counts of steps at full size, without data. A profile's model is made when it is first asked for."""

    def __init__(self, folder: Path, rows: Rows):
        self.folder = folder
        self.rows = rows
        self.clip = first_questions(rows[0], QUESTIONS)
        self._shapes: dict[str, ShapesOnly] = {}
        self._counted: dict[tuple, int] = {}

    def shapes(self, profile: str) -> ShapesOnly:
        if profile not in self._shapes:
            self._shapes[profile] = ShapesOnly("full", profile, VISION_LAYERS["full"])
        return self._shapes[profile]

    @cached_property
    def processor(self):
        return make_processor(config_of("full"))

    def count(
        self,
        what: str,
        rows: Rows | None = None,
        profile: str = "light",
        trainer_class: type[VideoStageTrainer] = VideoStageTrainer,
        cached: bool = True,
        grouped: bool = True,
        checkpointing: bool = False,
    ) -> int:
        """`"flops"` of one step on these rows, or the most `"bytes"` (weights in bfloat16, gradients, optimiser).

        Without rows it is one clip with `QUESTIONS` questions. Counted once for the same arguments.
        """
        rows = [self.clip] if rows is None else rows
        questions = tuple(len(row["qa"]) for row in rows)
        key = (what, questions, profile, trainer_class, cached, grouped, checkpointing)
        if key not in self._counted:
            self._counted[key] = self._count(what, rows, profile, trainer_class, cached, grouped, checkpointing)
        return self._counted[key]

    def _count(self, what, rows, profile, trainer_class, cached, grouped, checkpointing) -> int:
        shapes = self.shapes(profile)
        model = shapes.model
        blocks = len(model.get_base_model().model.vision_tower.layers)
        features = shapes.features(blocks - (VISION_LAYERS["full"] if profile == "paper" else 0))
        args = Stage2Config(str(self.folder / "out"), disable_tqdm=True, use_cpu=True)
        trainer = shapes.trainer(
            trainer_class,
            args,
            rows,
            self.processor,
            "light" if profile == "light" else "paper",
            features=features if cached else None,
            grouped=grouped,
        )
        set_checkpointing(trainer, checkpointing)
        batch = shapes.batch(trainer.data_collator(rows))

        def step() -> None:
            model.train()
            # As accelerate does around a forward pass in bfloat16.
            with torch.autocast("cpu", torch.bfloat16):
                loss = trainer.compute_loss(model, batch)
            loss.backward()
            model.zero_grad()

        with shapes.mode:
            if what == "flops":  # not in one pass with the bytes: this counter keeps tensors
                return count_flops(step)
            trained = [p for p in model.parameters() if p.requires_grad]
            moments = [torch.zeros_like(p) for p in trained for _ in range(2)]  # of AdamW
            with LiveBytes([*model.parameters(), *model.buffers(), *moments]) as memory:
                step()
            return memory.peak

    def ratios(self, without: dict[str, Any], with_it: dict[str, Any]) -> dict[str, float]:
        """Counts of a step with these arguments of `count`, over those of a step with the others."""
        return {what: self.count(what, **without) / self.count(what, **with_it) for what in ("flops", "bytes")}


def first_questions(row: dict[str, Any], count: int) -> dict[str, Any]:
    return row | {"qa": row["qa"][:count]}


# -- what the comparisons share ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the page.

    Args:
        kept: `"yes"`, `"no"`, `"setting"` (off unless asked for), or `"not measured"`.
        tiny: `time`, `processor`, `flops`, `bytes`, as far as they were measured (see `compare`).
        full: `flops` and `bytes`, counted at full size.
    """

    means: str
    setting: str
    kept: str
    reason: str
    tiny: dict[str, float] = field(default_factory=dict)
    full: dict[str, float] = field(default_factory=dict)


class Bench:
    """What the comparisons share."""

    def __init__(self, folder: Path, repeats: int, seed: int, dataset: Path | None):
        self.folder, self.repeats, self.seed = folder, repeats, seed
        self.lengths, self.lengths_of = row_lengths(dataset)
        self.tiny = TinySteps(folder, seed)
        self.full = FullSteps(folder, self.tiny.rows)

    def one(self, **options) -> Side:
        """A step on one clip."""
        return self.tiny.side([[[self.tiny.clip]]], **options)

    def compare(self, without: Side, with_it: Side) -> dict[str, float]:
        return compare(without, with_it, self.repeats)


def row_lengths(dataset: Path | None) -> tuple[np.ndarray, str]:
    """Tokens of each training row of stage 2, behind the prefix of the full size, and where they are from.

    Of a built dataset, with the tokenizer of the embedded base; without one, as many questions as the paper's recipe
    asks, all of one length.
    """
    prefix = len(make_processor(config_of("full")).encode_prefix())
    if dataset is None:
        asked = [row.questions.total for row in get_recipe("paper").rows for _ in range(row.count)]
        return prefix + QUESTION_TOKENS * np.array(asked), "the paper's recipe"
    data = load_local(dataset)
    processor = PVChatProcessor.from_pretrained(EMBEDDED_BASE)
    lengths = [
        sum(len(processor.encode_qa(qa["question"], qa["answer"], data.subject)[0]) for qa in row["qa"])
        for row in training_rows(data.split("train"), still=False)
    ]
    return prefix + np.array(lengths), "a built dataset"
