"""Scores an adapter on the test split of a dataset, with the controls beside the score: constant answers, no video, no
adapter, another subject's adapter. Answers are kept one JSON line each, and a rerun asks only what is missing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import arguments

HELP = "score an adapter, with controls"
EXAMPLES = (
    "pvchat evaluate runs/Nz --data runs/Nz/dataset",
    "pvchat evaluate runs/Nz --wrong runs/Ada --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help="run or adapter folder")
    parser.add_argument("--data", type=Path, metavar="DATASET", help="dataset folder (default: that of the run)")
    parser.add_argument("--wrong", type=Path, action="append", default=[], help="another subject's run, as a control")
    parser.add_argument("--out", type=Path, help="folder for scores and answers (default: report/ beside the adapter)")
    arguments.add_base(parser)
    arguments.add_seed(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..runs import evaluate_adapter
    from .show import show_scores

    adapter = arguments.adapter_folder(args.adapter)
    result = evaluate_adapter(
        adapter,
        data=args.data,
        base=args.base,
        out=args.out,
        wrong_adapters=[arguments.adapter_folder(path) for path in args.wrong],
        seed=args.seed,
        progress=args.progress,
        command=args.command_line,
    )
    if not args.json:
        show_scores(result["scores"])
        print(f"Report: {result['report']}")
    return result
