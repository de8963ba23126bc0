"""What does each means of making training cheaper bring on its own?

    python -m benchmarks.training_means --threads 1
    python -m benchmarks.training_means --write docs/results --dataset demo/dataset
    python -m benchmarks.training_means --only cache checkpointing

A step of stage 2 as the trainers take it, with one means and without it. Times are those of a tiny model whose parts
cost, in proportion, about what they cost at full size: both ways in turn, the fastest of some. FLOPs and the most
bytes at any time are counted twice, in these steps and at full size (bfloat16, from shapes). Every number says how
many times more it takes without the means. A step is one clip with 18 questions, unless the row says something else;
the profile is `light` where it makes no difference. Weights are random: cost does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pvchat.errors import PVChatError
from pvchat.passport import passport, passport_line

from . import means_memory, means_reading
from .command import command_line, make_parser, publish
from .step_pairs import BATCH, QUESTIONS, Bench, Row

MEANS: dict[str, Callable[[Bench], list[Row]]] = {
    "cache": means_reading.cached_states,
    "mapped": means_reading.mapped_reading,
    "keys": means_reading.qformer_keys,
    "grouped": means_reading.grouped,
    "mask": means_reading.block_mask,
    "buckets": means_reading.buckets,
    "logits": means_memory.logits,
    "liger": means_memory.liger,
    "checkpointing": means_memory.checkpointing,
    "masters": means_memory.masters,
    "ahead": means_reading.decode_ahead,
    "compile": means_memory.compiled,
    "four-bit": means_memory.four_bit,
    "adam8": means_memory.eight_bit_adam,
}


# -- the page ---------------------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The result as the page that is committed."""
    lines = [
        "# The means of training cheaply, one by one",
        "",
        passport_line(result["passport"]),
        "",
        "How many times more a step takes without the means. Time and processor time are measured at tiny size; FLOPs "
        "and the most bytes at any time are counted at tiny and at full size.",
        "",
        "| means | setting | time × | processor time × | FLOPs × tiny | full | bytes × tiny | full | kept? | why |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        tiny, full = row["tiny"], row["full"]
        values = [tiny.get("time"), tiny.get("processor")]
        values += [counts.get(name) for name in ("flops", "bytes") for counts in (tiny, full)]
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        lines.append("| " + " | ".join([row["means"], row["setting"], *cells, row["kept"], row["reason"]]) + " |")
    lines += [
        "",
        "Weights, gradients and optimiser states are among the bytes. Weights are random; "
        "`benchmarks/training_means.py` says what is compared.",
    ]
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace, command: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.repeats, args.seed, args.dataset)
        rows = []
        for name in MEANS if args.only is None else args.only:
            rows += [{"name": name} | asdict(row) for row in MEANS[name](bench)]
            print(f"{name}: {time.process_time():.0f} s of processor time so far", file=sys.stderr)
        config = {
            "questions": QUESTIONS,
            "clips_per_update": BATCH,
            "lengths": bench.lengths_of,
            "repeats": args.repeats,
            "threads": torch.get_num_threads(),
        }
    return {"rows": rows, "passport": passport(command, config, args.seed)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("training_means", __doc__, "training_means.{json,md}")
    parser.add_argument("--only", nargs="+", choices=list(MEANS), metavar="NAME", help=f"of {', '.join(MEANS)}")
    parser.add_argument(
        "--dataset", type=Path, metavar="FOLDER", help="a built dataset, for the lengths (default: the paper's recipe)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each way (default: 3)")
    parser.add_argument("--threads", type=int, help="processor threads (default: PyTorch's)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        result = run(args, command_line("training_means", argv))
    except PVChatError as error:
        print(f"benchmarks.training_means: {error}", file=sys.stderr)
        return 1
    publish(result, markdown(result), "training_means", args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
