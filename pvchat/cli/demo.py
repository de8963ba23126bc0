"""Shows the whole path on the embedded cartoon world, on a CPU and offline: one reference clip of a drawn person
becomes a dataset, two training stages, an adapter, scores on new clips, answers, and a report. Interrupted, the same
command goes on where it stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from . import arguments

HELP = "see the whole thing work in a few minutes, offline"
EXAMPLES = ("pvchat demo", "pvchat demo --out runs/try --seed 1 --json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    arguments.add_seed(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..demo import NAME, demo
    from .show import show_answers, show_intro, show_run

    out = sys.stderr if args.json else sys.stdout
    show_intro(NAME, args.out, out)
    run, answers = demo(args.out, seed=args.seed, progress=args.progress, command=args.command_line)
    if not args.json:
        show_run(run)
        show_answers(answers)
        print(f"\nReport: {run.folder / 'report' / 'index.html'}")
        print(f'Ask more: pvchat chat {run.folder} {run.folder}/test/000.mp4 "Is {NAME} here?"')
    return run.to_json() | {"answers": answers}
