"""Videos with their questions -> batches.

Grouped (one row per video, one pass of encoder, Q-Former and prefix):

    ids        [ prefix ............ | question 1 answer 1 </s> | question 2 answer 2 </s> | pad ]
    positions    0 ............. P-1   P  P+1 ...                 P  P+1 ...                 0
    sees         itself, causally      prefix and itself          prefix and itself          itself
    labels       -100                  -100 ..... answer </s>     -100 ..... answer </s>     -100

Ungrouped (the reference's way): one row per question, and the video again in every row.
Shape letters: B rows, L tokens, V videos, N tiles, S encoder tokens, D channels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import PVChatError
from .features import FeatureCache

IGNORED = -100


def questions_of_epoch(count: int, take: int | None, seed: int, video_id: str, epoch: int) -> list[int]:
    """Which of a video's `count` questions it brings in an epoch, as indices.

    Epochs walk through a seeded shuffle in steps of `take` and reshuffle after the last question, so every question
    comes once before any comes twice (the last step of a shuffle is filled up from its start). The result depends on
    the arguments only, never on what ran before.
    """
    if take is None or take >= count:
        return list(range(count))
    cycle, step = divmod(epoch, -(-count // take))
    order = np.random.default_rng([seed, zlib.crc32(video_id.encode()), cycle]).permutation(count)
    return [int(order[i % count]) for i in range(step * take, (step + 1) * take)]


def existence_weights(questions: Sequence[dict[str, Any]]) -> dict[bool, float]:
    """Loss weights of existence answers, by "is the subject there": each side gets half of the total.

    With p "yes" and n "no" questions: `(p + n) / 2p` and `(p + n) / 2n`. 1 and 1 if one side is missing.
    """
    present = [q["subject_present"] for q in questions if q["category"] == "existence"]
    yes, no = sum(present), len(present) - sum(present)
    if not yes or not no:
        return {True: 1.0, False: 1.0}
    return {True: (yes + no) / (2 * yes), False: (yes + no) / (2 * no)}


def group_mask(segments: torch.Tensor) -> torch.Tensor:
    """Who sees whom, (B, L) segment numbers -> (B, 1, L, L) bool, True = attends.

    Segment 0 is the prefix, 1, 2, ... the questions, -1 padding. Causal; a token sees the prefix and its own segment.
    """
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    prefix = (segments == 0)[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return ((same | prefix) & causal)[:, None]


class GroupedCollator:
    """Makes batches from rows of `training_rows`.

    Args:
        processor: a `PVChatProcessor`.
        features: cached encoder states; `None` reads and encodes the pixels in every step.
        still: first frame only (stage 1); used when there is no cache.
        qa_per_video, seed: see `questions_of_epoch`. Set `epoch` before each epoch.
        weights: loss weights of existence answers, see `existence_weights`.
        decision_weight: further factor on the first token of an existence answer, the "Yes" or "No".
        grouped: `False` gives one row per question with the video repeated, for comparison.

    Returns on call:
        `input_ids`, `position_ids`, `labels` (B, L) int64, `loss_weights` (B, L) float32, `attention_mask`
        (B, 1, L, L) bool (ungrouped: (B, L) int64), `logits_to_keep` (K,) int64, the positions that some row predicts
        an answer token from, and the videos: `vision_hidden_states` (V, N, S, D) with `vision_layers_done`, or
        `pixel_values_videos` (V, N, T, 3, H, W).
    """

    def __init__(
        self,
        processor,
        features: FeatureCache | None = None,
        still: bool = False,
        qa_per_video: int | None = None,
        seed: int = 0,
        weights: dict[bool, float] | None = None,
        decision_weight: float = 1.0,
        grouped: bool = True,
    ):
        self.processor = processor
        self.features = features
        self.still = still
        self.qa_per_video = qa_per_video
        self.seed = seed
        self.weights = weights or {True: 1.0, False: 1.0}
        self.decision_weight = decision_weight
        self.grouped = grouped
        self.epoch = 0
        self._prefix = processor.encode_prefix()
        self._pad = processor.tokenizer.pad_token_id or 0
        self._encoded: dict[tuple[str, str, str], tuple[list[int], int]] = {}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        chosen = [[row["qa"][i] for i in self._chosen(row)] for row in rows]
        batch = self._text(rows, chosen)
        repeats = [1] * len(rows) if self.grouped else [len(questions) for questions in chosen]
        return batch | self._videos(rows, torch.tensor(repeats))

    def _chosen(self, row: dict[str, Any]) -> list[int]:
        return questions_of_epoch(len(row["qa"]), self.qa_per_video, self.seed, row["video_id"], self.epoch)

    def _encode(self, question: dict[str, Any], subject: str) -> tuple[list[int], int]:
        key = (question["question"], question["answer"], subject)
        if key not in self._encoded:
            self._encoded[key] = self.processor.encode_qa(*key)
        return self._encoded[key]

    def _text(self, rows: Sequence[dict[str, Any]], chosen: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        packs = list(zip(rows, chosen, strict=True))
        if not self.grouped:
            packs = [(row, [question]) for row, questions in packs for question in questions]
        encoded = [[self._encode(q, row["subject"]) for q in questions] for row, questions in packs]
        start = len(self._prefix)
        length = start + max(sum(len(ids) for ids, _ in pack) for pack in encoded)
        shape = (len(packs), length)
        input_ids = torch.full(shape, self._pad)
        labels = torch.full(shape, IGNORED)
        positions = torch.zeros(shape, dtype=torch.long)
        segments = torch.full(shape, -1)
        loss_weights = torch.zeros(shape)
        input_ids[:, :start] = torch.tensor(self._prefix)
        positions[:, :start] = torch.arange(start)
        segments[:, :start] = 0
        for b, ((_, questions), pack) in enumerate(zip(packs, encoded, strict=True)):
            begin = start
            for number, (question, (ids, asked)) in enumerate(zip(questions, pack, strict=True), 1):
                end = begin + len(ids)
                input_ids[b, begin:end] = torch.tensor(ids)
                labels[b, begin + asked : end] = input_ids[b, begin + asked : end]
                positions[b, begin:end] = torch.arange(start, start + len(ids))
                segments[b, begin:end] = number
                loss_weights[b, begin:end] = self._weight(question)
                if question["category"] == "existence":
                    loss_weights[b, begin + asked] *= self.decision_weight
                begin = end
        mask = group_mask(segments) if self.grouped else (segments >= 0).long()
        return {
            "input_ids": input_ids,
            "position_ids": positions,
            "attention_mask": mask,
            "labels": labels,
            "loss_weights": loss_weights,
            "logits_to_keep": labels[:, 1:].ne(IGNORED).any(dim=0).nonzero()[:, 0],
        }

    def _weight(self, question: dict[str, Any]) -> float:
        return self.weights[question["subject_present"]] if question["category"] == "existence" else 1.0

    def _videos(self, rows: Sequence[dict[str, Any]], repeats: torch.Tensor) -> dict[str, Any]:
        if self.features is not None:
            states = torch.stack([self.features.get(row["sha256"]) for row in rows])
            return {
                "vision_hidden_states": states.repeat_interleave(repeats, dim=0),
                "vision_layers_done": self.features.layers_done,
            }
        pixels = self.processor.video_processor(
            videos=[row["path"] for row in rows], return_tensors="pt", still=self.still
        )["pixel_values_videos"]
        return {"pixel_values_videos": pixels.repeat_interleave(repeats, dim=0)}


def training_rows(videos: Sequence[Any], still: bool) -> list[dict[str, Any]]:
    """`VideoRow`s -> rows of the training set: a video with the questions that a stage may use.

    `still` keeps the questions that one frame can answer (stage 1). Videos without such a question are left out.

    Raises:
        PVChatError: nothing is left.
    """
    rows = []
    for video in videos:
        questions = [
            {
                "question": qa.question,
                "answer": qa.answer,
                "category": qa.category,
                "subject_present": qa.subject_present,
            }
            for qa in video.qa
            if qa.still_ok or not still
        ]
        if questions:
            rows.append(
                {
                    "video_id": video.video_id,
                    "subject": video.subject,
                    "sha256": video.sha256,
                    "path": str(video.path),
                    "qa": questions,
                }
            )
    if not rows:
        kind = "existence or appearance " if still else ""
        raise PVChatError(f"The training split has no {kind}question to learn from; build the dataset again.")
    return rows
