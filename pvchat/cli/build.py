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
    from ..dataset_builder import get_recipe, normalise_name
    from ..runs import build, read_consent
    from .show import show_dataset, show_plan

    name = normalise_name(args.name)
    test_clips = arguments.read_test_clips(args.test)
    if args.dry_run:
        return show_plan(get_recipe(args.recipe), args.reference, name, quiet=args.json)
    dataset = build(
        args.reference,
        name,
        base=args.base,
        out=args.out or Path("runs") / name.strip("<>") / "dataset",
        recipe=args.recipe,
        gallery=args.gallery,
        test_clips=test_clips,
        consent=read_consent(args.consent, args.i_have_consent, args.reference, name),
        noun=args.noun,
        seed=args.seed,
        progress=args.progress,
    )
    if not args.json:
        show_dataset(dataset)
    return {
        "dataset": str(dataset.root),
        "dataset_hash": dataset.manifest["dataset_hash"],
        "videos": len(dataset.videos),
        "questions": sum(len(video.qa) for video in dataset.videos),
    }
