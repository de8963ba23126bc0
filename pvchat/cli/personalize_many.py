"""Learns everybody of a list, each in a run of their own: what `pvchat personalize` makes of one person.

The list is a YAML file:

    - name: <Nz>
      reference: nz.mp4
      gallery: others/
      consent: nz.json
    - {name: <Ada>, reference: ada.mp4, gallery: others/, consent: ada.json, test: ada-test/}

Further fields: noun, box ([x0, y0, x1, y1]), photo. Paths are meant from the file's folder.

A person who cannot be learned costs no other one: the rest goes on, the table says why, and the exit code is 1.
Finished runs are kept as they are, so that the same command goes on where it stopped. What depends on a gallery that
several people share is made once."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from . import arguments
from .ablate import Bars

HELP = "learn many people, several at a time"
EXAMPLES = (
    "pvchat personalize-many subjects.yaml --dry-run",
    "pvchat personalize-many subjects.yaml --workers 4 --out runs",
    "RAY_ADDRESS=auto pvchat personalize-many subjects.yaml --engine ray --workers 16",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subjects", metavar="SUBJECTS.yaml", type=Path, help="list of people, see above")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: on the Ray cluster that RAY_ADDRESS names, or on this machine (default: local)",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="processor threads of each run (default: this machine's / workers)"
    )
    parser.add_argument(
        "--i-have-consent", action="store_true", help="declare it for everybody in the list who has no record"
    )
    arguments.add_recipe(parser)
    arguments.add_base(parser)
    arguments.add_training(parser)
    arguments.add_seed(parser)
    parser.add_argument("--dry-run", action="store_true", help="check the list and everybody in it, and stop")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..many import Job, Plan, check, default_threads, personalize_many
    from ..subject_list import read_subject_list

    entries = read_subject_list(args.subjects)
    if args.threads is not None and args.threads < 1:
        raise PVChatError(f"threads must be at least 1, got {args.threads}.")
    plan = Plan(
        out=args.out,
        base=args.base,
        recipe=args.recipe,
        profile=args.profile,
        routing=args.attention,
        settings=arguments.read_settings(args.config),
        declare=args.i_have_consent,
        seed=args.seed,
        threads=args.threads or default_threads(max(1, args.workers)),
        command=args.command_line,
    )
    if args.dry_run:
        rows = [check(Job(entry, plan)) for entry in entries]
        failed = [row for row in rows if row["problem"]]
        result = {"subjects": rows, "failed": len(failed)}
        if not args.json:
            show_checks(rows)
    else:
        with Bars(args.progress, args.quiet) as progress:
            outcomes = personalize_many(entries, plan, engine=args.engine, workers=args.workers, progress=progress)
        for outcome in outcomes:
            if outcome.trace:
                print(f"{outcome.name}: a defect of pvchat; please report it:\n{outcome.trace}", file=sys.stderr)
        rows = [{k: v for k, v in outcome.to_json().items() if k != "trace"} for outcome in outcomes]
        failed = [row for row in rows if row["state"] == "failed"]
        result = {"subjects": rows, "failed": len(failed)}
        if not args.json:
            show_outcomes(rows)
    if failed:
        if args.json:
            print(json.dumps(result, ensure_ascii=False))
        names = ", ".join(row["name"] for row in failed)
        what = "cannot be learned" if args.dry_run else "failed, the others are finished"
        raise PVChatError(f"{len(failed)} of {len(rows)} subjects {what}: {names}.")
    return result


def show_checks(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.1f} s"
        gallery = "-" if row["gallery"] is None else f"{row['gallery']} files"
        lines.append((row["name"], row["state"], seconds, gallery, row["problem"] or ""))
    show(("subject", "run", "reference", "gallery", "problem"), lines)


def show_outcomes(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        score = "-" if row["balanced_accuracy"] is None else f"{row['balanced_accuracy']:.3f}"
        lines.append((row["name"], row["state"], score, f"{row['seconds']:.0f}", row["error"] or row["run"]))
    show(("subject", "", "balanced accuracy", "seconds", "run, or why not"), lines)


def show(columns: tuple[str, str, str, str, str], rows: list[tuple[str, str, str, str, str]]) -> None:
    """Two columns of words, two of numbers, and one of a longer text."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(rows)} subjects")
    for column, justify in zip(columns, ("left", "left", "right", "right", "left"), strict=True):
        table.add_column(column, justify=justify, overflow="fold" if column == columns[-1] else "ellipsis")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
