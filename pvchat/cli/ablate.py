"""Trains variants of the system on several people and seeds and writes the paper's ablation tables: which attention,
which losses, which training clips, how many subject tokens, which stages. People are members of the cartoon cast,
unless --data names built datasets. What two tables share is trained once, every finished run is kept, and the same
command goes on where it stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from . import arguments

HELP = "train variants and write the paper's ablation tables"
EXAMPLES = (
    "pvchat ablate attention losses --dry-run",
    "pvchat ablate all --subjects 8 --seeds 3 --workers 2 --threads 1 --write docs/results",
    "pvchat ablate data --data runs/Nz/dataset runs/Ada/dataset",
)
TABLES = ("attention", "losses", "data", "tokens", "stages")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tables", metavar="TABLE", nargs="+", choices=(*TABLES, "all"), help=f"{', '.join(TABLES)}, all"
    )
    parser.add_argument("--subjects", type=int, default=8, help="people of the cartoon cast (default: 8)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant on each person (default: 3)")
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="DATASET", help="datasets, not the cast")
    parser.add_argument("--recipe", default="light", help="of the cast's datasets, or oracle (default: light)")
    parser.add_argument("--positives", type=int, default=20, help="test clips of each person, as many of others")
    parser.add_argument("--profile", choices=("light", "paper"), default="light", help="adapter size (default: light)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="training settings: adapter, train, '1', '2'")
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"), help="work folder (default: runs/ablate)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="also write the tables there")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--threads", type=int, help="processor threads of each run (default: PyTorch's)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained and how long it takes")
    arguments.add_base(parser)
    arguments.add_seed(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..evaluation.ablation.study import Study, plan, run_study
    from ..evaluation.ablation.tables import markdown

    study = Study(
        tables=TABLES if "all" in args.tables else tuple(args.tables),
        out=args.out,
        subjects=args.subjects,
        seeds=args.seeds,
        data=tuple(args.data),
        base=args.base,
        recipe=args.recipe,
        positives=args.positives,
        profile=args.profile,
        settings=arguments.read_settings(args.config),
        seed=args.seed,
        workers=args.workers,
        threads=args.threads,
    )
    if args.dry_run:
        found = plan(study)
        if not args.json:
            show_plan(found, study)
        return found
    with Bars(args.progress, args.quiet) as progress:
        tables = run_study(study, command=args.command_line, write=args.write, progress=progress)
    if not args.json:
        print("\n".join(markdown(table) for table in tables.values()))
    return tables


def show_plan(plan: dict[str, Any], study) -> None:
    for name, rows in plan["tables"].items():
        print(f"{name}: {', '.join(rows)}")
    print(
        f"{len(plan['variants'])} variants x {plan['subjects']} subjects x {len(plan['seeds'])} seeds = "
        f"{plan['jobs']} trainings, of which {plan['finished']} are done; {plan['datasets']} datasets to build."
    )
    if plan["seconds"] is None:
        print(f"Time: {plan['source']}.")
        return
    print(
        f"Time: about {plan['seconds'] / 3600:.1f} h with {study.workers} at a time "
        f"({plan['seconds_per_job']:.0f} s each: {plan['source']})."
    )


class Bars:
    """What `run_study` calls: a bar for each kind of work on a terminal, else a line when something is done."""

    def __init__(self, bars: bool, quiet: bool):
        self.wanted, self.quiet = bars, quiet
        self.bars: dict[str, Any] = {}

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        for bar in self.bars.values():
            bar.close()

    def __call__(self, what: str, done: int, total: int, last: str) -> None:
        if self.wanted:
            from tqdm.auto import tqdm

            if what not in self.bars:
                self.bars[what] = tqdm(total=total, desc=what, unit=what.rstrip("s"))
            self.bars[what].set_postfix_str(last, refresh=False)
            self.bars[what].update(1)
        elif not self.quiet:
            print(f"{what} {done}/{total}  {last}", file=sys.stderr, flush=True)
