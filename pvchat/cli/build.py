"""Builds the dataset of a person alone: clips with questions and answers, in the layout that `datasets.load_dataset`
reads. Interrupted, the same command goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import arguments

HELP = "build the dataset of a person"
EXAMPLES = (
    'pvchat build clip.mp4 --name "<Nz>" --gallery others/ --i-have-consent --out data/nz',
    'pvchat build clip.mp4 --name "<Nz>" --recipe light --dry-run',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_subject(parser)
    arguments.add_recipe(parser)
    arguments.add_base(parser)
    arguments.add_seed(parser)
    parser.add_argument("--out", type=Path, help="dataset folder (default: runs/NAME/dataset)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be made, and stop")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..dataset_builder import get_recipe
    from ..runs import build
    from .show import show_dataset, show_plan

    subject = arguments.subject_arguments(args)
    if args.dry_run:
        return show_plan(get_recipe(args.recipe), args.reference, subject["name"], quiet=args.json)
    out = args.out or Path("runs") / subject["name"].strip("<>") / "dataset"
    dataset = build(**subject, out=out)
    if not args.json:
        show_dataset(dataset)
    return {
        "dataset": str(dataset.root),
        "dataset_hash": dataset.manifest["dataset_hash"],
        "videos": len(dataset.videos),
        "questions": sum(len(video.qa) for video in dataset.videos),
    }
