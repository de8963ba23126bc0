"""Scores a file of answers again, without the video model: with another seed of the intervals, BERTScore, a judge, or
after an update of this package. Controls and ratings beside the file are taken as they are. scores.json in the same
folder is written anew; its passport says that this command made it, and keeps that of the run that asked the model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import arguments
from .evaluate import add_rating, rating_arguments

HELP = "score kept answers again, without the model"
EXAMPLES = (
    "pvchat score runs/Nz/report/answers.jsonl",
    "pvchat score runs/Nz/report --bertscore roberta-large",
    "pvchat score runs/Nz --judge http://localhost:8000/v1 --judge-model Qwen/Qwen3-32B --judge-runs 2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", metavar="ANSWERS", type=Path, help="answers.jsonl, its folder, or a run folder")
    add_rating(parser)
    arguments.add_seed(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..evaluation import rescore
    from .show import show_scores

    path = answers_file(args.answers)
    scores = rescore(path, args.command_line, args.seed, **rating_arguments(args))
    if not args.json:
        show_scores(scores)
    return {"answers": str(path), "scores": scores}


def answers_file(path: Path) -> Path:
    """The answers of a run, of a report folder, or the file itself."""
    for candidate in (path / "report" / "answers.jsonl", path / "answers.jsonl"):
        if candidate.is_file():
            return candidate
    return path
