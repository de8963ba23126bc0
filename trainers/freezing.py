"""Which parameter trains in which stage, and in which learning-rate group.

A table has one row per part of the model and kind of parameter, and must match every parameter exactly once: a part
that nobody thought of is an error, not a silent default. Kinds:

    base    a weight of the base model (never trained)
    lora    LoRA matrices
    copy    the adapter's own copy of a whole module (PEFT `modules_to_save`)
    rows    the `<sks>` rows of the embedding and the head
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

_PEFT_PREFIX = "base_model.model."
_KINDS = (("lora", ".lora_"), ("copy", ".modules_to_save."), ("rows", ".trainable_tokens_delta."))


@dataclass(frozen=True)
class Row:
    """Parameters whose name starts with `part` (a regular expression) and are of `kind`: their group in each stage.

    `None` is frozen. Groups are those of `PVChatTrainingConfig.learning_rates`.
    """

    part: str
    kind: str
    stage1: str | None = None
    stage2: str | None = None

    def matches(self, name: str, kind: str) -> bool:
        return kind == self.kind and re.match(self.part, name) is not None

    def group(self, stage: int) -> str | None:
        return self.stage1 if stage == 1 else self.stage2


_COMMON = (
    Row(r"model\.vision_tower\.", "base"),
    Row(r"model\.vision_layernorm\.", "base"),
    Row(r"model\.query_tokens\.", "base"),
    Row(r"model\.extra_query_tokens\.", "base"),
    Row(r"model\.subject_tokens\.", "base"),
    Row(r"model\.subject_tokens\.", "copy", "subject", "subject"),
    Row(r"model\.qformer\.", "base"),
    Row(r"model\.qformer\..*\.head_router\.", "copy", "router", "router"),
    Row(r"model\.multi_modal_projector\.", "base"),
    Row(r"model\.language_model\.", "base"),
    Row(r"model\.language_model\.", "lora", "lora", "lora"),
    Row(r"model\.language_model\.embed_tokens\.", "rows", "subject", "subject"),
    Row(r"lm_head\.", "base"),
    Row(r"lm_head\.", "rows", "subject", "subject"),
)

FREEZE_TABLES = {
    "light": (*_COMMON, Row(r"model\.qformer\.", "lora", "qformer", "qformer")),
    "paper": (
        *_COMMON,
        Row(r"model\.qformer\.(?!.*\.head_router\.)", "copy", "qformer", "qformer"),
        Row(r"model\.vision_tower\.layers\.", "copy", None, "vision"),
    ),
}


def kind_of(name: str) -> str:
    """Kind of a parameter, from its name."""
    return next((kind for kind, marker in _KINDS if marker in name), "base")


def apply_freeze_table(model: nn.Module, profile: str, stage: int) -> dict[str, str]:
    """Sets `requires_grad` of every parameter and returns the group of each that trains, by full name.

    Args:
        model: what `build_subject_model` returned.
        profile: `"light"` or `"paper"`.
        stage: 1 or 2.

    Raises:
        ValueError: parameters that no row or more than one row of the table matches, listed.
    """
    groups, bad = {}, []
    for name, parameter in model.named_parameters():
        rows = [row for row in FREEZE_TABLES[profile] if row.matches(name.removeprefix(_PEFT_PREFIX), kind_of(name))]
        if len(rows) != 1:
            bad.append(f"{name} ({len(rows)} rows)")
            continue
        group = rows[0].group(stage)
        parameter.requires_grad_(group is not None)
        if group is not None:
            groups[name] = group
    if bad:
        raise ValueError(
            f"The freeze table {profile!r} must match every parameter once; it does not for {', '.join(bad)}. "
            f"Add or narrow a row in trainers/freezing.py."
        )
    return groups


def trained_counts(model: nn.Module, groups: dict[str, str]) -> dict[str, int]:
    """Number of trained values per group."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if name in groups:
            counts[groups[name]] = counts.get(groups[name], 0) + parameter.numel()
    return counts
