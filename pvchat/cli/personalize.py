"""Learns a person from one video: dataset, stage 1 (still image), stage 2 (video), adapter, and, with --test, scores
and a report. Interrupted, the same command goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import arguments

HELP = "learn a person from one reference video"
EXAMPLES = (
    'pvchat personalize clip.mp4 --name "<Nz>" --gallery others/ --i-have-consent',
    'pvchat personalize clip.mp4 --name "<Nz>" --gallery others/ --consent nz.json --test test/ --out runs/nz',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_subject(parser)
    arguments.add_recipe(parser)
    arguments.add_base(parser)
    arguments.add_training(parser)
    arguments.add_seed(parser)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/NAME)")
    parser.add_argument("--wrong", type=Path, action="append", default=[], help="another subject's run, as a control")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be made, and stop")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..dataset_builder import get_recipe
    from ..runs import personalize
    from .show import show_plan, show_run

    subject = arguments.subject_arguments(args)
    settings = arguments.read_settings(args.config)
    if args.dry_run:
        return show_plan(get_recipe(args.recipe), args.reference, subject["name"], quiet=args.json)
    run = personalize(
        **subject,
        out=args.out,
        profile=args.profile,
        routing=args.attention,
        settings=settings,
        wrong_adapters=[arguments.adapter_folder(path) for path in args.wrong],
        command=args.command_line,
    )
    if not args.json:
        show_run(run)
    return run.to_json()
