"""What a training step at full size holds in memory, item by item.

    python -m benchmarks.training_memory --write docs/results

Counted from shapes: the real model, adapter, collator and trainer of the published size take a step on tensors without
data, and the bytes of all that are alive are added up (`counters.LiveBytes`). A clip comes with 18 questions, the mean
of the paper's recipe, or with 30, the most. What an allocator and a CUDA context add is not counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pvchat.cli import calm_libraries
from pvchat.passport import passport, passport_line

from .command import command_line, make_parser, publish
from .cost_setup import make_rows
from .means_memory import FOUR_BITS
from .step_pairs import FullSteps, first_questions

LIMITS = {"bfloat16": 24e9, "4 bits": 14e9}  # bytes of cards that people own
QUESTIONS = (18, 30)
PARTS = {
    "vision encoder": ".vision_tower.",
    "Q-Former": ".qformer.",
    "layers of the language model": ".language_model.layers.",
}


class Way(NamedTuple):
    """How a step is taken. questions: of the clip; None for two samples of one question each, as the reference has."""

    title: str
    profile: str
    questions: int | None
    checkpointing: bool
    four_bits: bool = False


WAYS = (
    Way("reference: two questions, each with its clip", "reference", None, False),
    Way("light, activations kept", "light", 18, False),
    *(
        Way(f"{title}, {questions} questions", profile, questions, True, four_bits)
        for title, profile, four_bits in (
            ("light", "light", False),
            ("paper", "paper", False),
            ("light, 4 bits", "light", True),
        )
        for questions in QUESTIONS
    ),
)


def items_of(steps: FullSteps, way: Way) -> dict[str, int]:
    """Bytes of weights by part, of what is trained, of AdamW's moments, and of the rest at the peak of a step."""
    clip = steps.rows[0]
    rows = [first_questions(clip, 1)] * 2 if way.questions is None else [first_questions(clip, way.questions)]
    grouped = way.questions is not None
    peak = steps.count("bytes", rows, way.profile, cached=grouped, grouped=grouped, checkpointing=way.checkpointing)
    model = steps.shapes(way.profile).model
    items = dict.fromkeys((*PARTS, "embeddings, head, projection", "trained values, float32"), 0)
    quantised = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        size = tensor.numel() * tensor.element_size()
        part = next((title for title, mark in PARTS.items() if mark in name), "embeddings, head, projection")
        items["trained values, float32" if tensor.requires_grad else part] += size
        if way.four_bits and ".language_model.layers." in name and name.endswith("_proj.base_layer.weight"):
            quantised += round((tensor.element_size() - FOUR_BITS) * tensor.numel())
    items["AdamW's moments"] = 2 * items["trained values, float32"]
    items["activations and gradients"] = peak - sum(items.values())
    items["layers of the language model"] -= quantised
    return items


def markdown(result: dict[str, Any]) -> str:
    """The result as the page that is committed."""
    names = list(next(iter(result["ways"].values())))
    lines = [
        "# Memory of a training step at full size",
        "",
        passport_line(result["passport"]),
        "",
        "GB at the moment when most is held, counted from shapes; one clip in a step, encoder states from the cache.",
        "",
        "| | " + " | ".join(result["ways"]) + " |",
        "|---" * (len(result["ways"]) + 1) + "|",
    ]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(f"{own[name] / 1e9:.2f}" for own in result["ways"].values()) + " |")
    lines.append(
        "| **sum** | " + " | ".join(f"**{sum(own.values()) / 1e9:.1f}**" for own in result["ways"].values()) + " |"
    )
    lines += [
        "",
        "All but the first two recompute activations (`gradient_checkpointing: true`). Attention in the Q-Former is "
        "counted in separate steps, with its weights, since it has dropout. What an allocator and a CUDA context add "
        "is not counted. In 4 bits: nf4 with a float32 scale for 64 weights, linears of the language model only.",
    ]
    return "\n".join(lines) + "\n"


def measure(folder: Path) -> dict[str, dict[str, int]]:
    """Title of each way -> its items."""
    steps = FullSteps(folder, make_rows(folder, others=0))
    return {way.title: items_of(steps, way) for way in WAYS}


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser("training_memory", __doc__, "training_memory.{json,md}").parse_args(argv)
    calm_libraries()
    with tempfile.TemporaryDirectory() as name:
        ways = measure(Path(name))
    config = {"ways": [way._asdict() for way in WAYS]}
    result = {"ways": ways, "passport": passport(command_line("training_memory", argv), config, 0)}
    publish(result, markdown(result), "training_memory", args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
