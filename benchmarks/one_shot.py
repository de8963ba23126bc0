"""One reference clip per person: how well are cast members recognised that no pretraining step has seen?

    python -m benchmarks.one_shot --subjects 8 --seed 0
    python -m benchmarks.one_shot --subjects 8 --seed 0 --ablate --write docs/results

Every subject is learned from one mp4 by each recipe and tested on 40 new clips in other clothes, places and actions:
20 of the subject, 10 of look-alikes (one or two features differ), 10 of strangers; nobody in them is in the gallery
that training uses. The controls stand beside the score. `oracle` lets the renderer play a perfect clip generator for
the positives, which no real system has: it bounds what better generators could bring.

The embedded model and its cartoon world are a test bench: the numbers say nothing about real people.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pvchat.cli import calm_libraries
from pvchat.cli.arguments import read_settings
from pvchat.dataset_builder.cartoon import cast
from pvchat.evaluation.ablation.subjects import cast_recipe, write_cast_files
from pvchat.passport import passport, passport_line
from pvchat.runs import EMBEDDED_BASE, evaluate_adapter, personalize

from .command import command_line, make_parser, publish

SCORES = ("balanced_accuracy", "false_accept_lookalike", "false_accept_stranger", "auroc")
ABLATED = ("scene", "animated", "portrait", "hard_negative", "random_negative")


def recipe_of(name: str, member, seed: int):
    """`light`, `oracle`, or `light-without-ORIGIN`."""
    base, _, origin = name.partition("-without-")
    recipe = cast_recipe(base, member, seed)
    return recipe.without(origin) if origin else recipe


def learn(member, name: str, folder: Path, args: argparse.Namespace):
    """One subject by one recipe."""
    files = write_cast_files(member, folder / member.name, args.seed, args.positives)
    return personalize(
        files.reference,
        member.name,
        base=args.base,
        out=folder / name / member.name,
        recipe=recipe_of(name, member, args.seed),
        gallery=files.gallery,
        test_clips=files.test_clips,
        work=folder / member.name / "work",
        settings=args.settings,
        seed=args.seed,
        progress=args.progress,
        command=args.command_line,
    )


def with_wrong_adapter(run, other, args: argparse.Namespace) -> dict[str, Any]:
    """The run's scores with one more control: the adapter of `other`."""
    found = evaluate_adapter(
        run.adapter,
        base=args.base,
        wrong_adapters=[other.adapter],
        seed=args.seed,
        progress=args.progress,
        command=args.command_line,
    )
    return found["scores"]


def interval(values: Sequence[float], seed: int, draws: int = 2000) -> list[float]:
    """95 % percentile bootstrap of the mean over subjects."""
    rng = np.random.default_rng(seed)
    values = np.asarray(values)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    return [round(float(q), 4) for q in np.quantile(means, (0.025, 0.975))]


def summary(scores: list[dict[str, Any]], runs: list, seed: int) -> dict[str, Any]:
    """Means over subjects, with the interval of balanced accuracy and every subject's own."""
    accuracies = [s["existence"]["balanced_accuracy"] for s in scores]
    return {
        **{name: mean([s["existence"][name] for s in scores]) for name in SCORES},
        "interval": interval(accuracies, seed),
        "categories": {
            kind: mean([exactness(s, kind) for s in scores]) for kind in ("appearance", "action", "location")
        },
        "seconds_per_subject": mean([sum(r.seconds[p] for p in ("dataset", "stage1", "stage2")) for r in runs]),
        "per_subject": {run.folder.name: round(a, 4) for run, a in zip(runs, accuracies, strict=True)},
    }


def exactness(scores: dict[str, Any], kind: str) -> float | None:
    return (scores["categories"].get(kind) or {}).get("exact")


def mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(float(np.mean(known)), 4) if known else None


def markdown(result: dict[str, Any]) -> str:
    """The result as the page that is committed."""
    lines = [
        "# One-shot recognition on the cartoon cast",
        "",
        passport_line(result["passport"]),
        "",
        "A demonstrator and a test bench: these numbers say nothing about real people.",
        "",
        "| recipe | balanced accuracy | 95 % interval | accepts look-alikes | strangers | AUROC | s per subject |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["recipes"].items():
        low, high = row["interval"]
        lines.append(
            f"| {name} | {row['balanced_accuracy']:.3f} | {low:.3f} to {high:.3f} "
            f"| {row['false_accept_lookalike']:.3f} "
            f"| {row['false_accept_stranger']:.3f} | {row['auroc']:.3f} | {row['seconds_per_subject']:.0f} |"
        )
    lines += ["", "| control | balanced accuracy |", "|---|---|"]
    for name, row in result["controls"].items():
        if row["balanced_accuracy"] is not None:
            lines.append(f"| {name.replace('_', ' ')} | {row['balanced_accuracy']:.3f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("one_shot", __doc__, "one_shot.{json,md}")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="picks the cast and everything that is drawn (default: 0)")
    parser.add_argument("--recipes", default="light,oracle", help="comma-separated (default: light,oracle)")
    parser.add_argument("--ablate", action="store_true", help="also the light recipe without each origin")
    parser.add_argument("--positives", type=int, default=20, help="test clips of the subject; as many of others")
    parser.add_argument("--base", default=None, help="checkpoint folder (default: the embedded pvchat-cartoon)")
    parser.add_argument("--out", type=Path, default=None, help="work folder (default: runs/one_shot-SEED)")
    parser.add_argument("--workers", type=int, default=1, help="subjects learned at the same time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each worker (default: 1)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="training settings, as of pvchat train")
    args = parser.parse_args(argv)
    if args.subjects < 2:
        parser.error("--subjects must be at least 2: each is the wrong subject of another")
    calm_libraries()
    args.settings = read_settings(args.config)
    args.progress = sys.stderr.isatty()
    args.command_line = command_line("one_shot", argv)
    folder = args.out or Path("runs") / f"one_shot-{args.seed}"
    members = cast(args.subjects, seed=args.seed)
    names = args.recipes.split(",") + ([f"light-without-{origin}" for origin in ABLATED] if args.ablate else [])
    recipes, controls = {}, {}
    with ProcessPoolExecutor(args.workers, get_context("spawn"), torch.set_num_threads, (args.threads,)) as pool:
        for name in names:
            runs = []
            for run in pool.map(partial(learn, name=name, folder=folder, args=args), members):
                runs.append(run)
                accuracy = run.scores["existence"]["balanced_accuracy"]
                print(f"{name:>28} {run.folder.name:>6} {accuracy:.3f}", file=sys.stderr, flush=True)
            scores = [run.scores for run in runs]
            if not controls:
                scores = list(pool.map(partial(with_wrong_adapter, args=args), runs, runs[1:] + runs[:1]))
                controls = {
                    control: {"balanced_accuracy": mean([control_score(s, control) for s in scores])}
                    for control in scores[0]["controls"]
                }
            recipes[name] = summary(scores, runs, args.seed)
    config = {"subjects": args.subjects, "recipes": names, "positives": args.positives, "settings": args.settings}
    config |= {"workers": args.workers, "threads": args.threads}
    about = passport(args.command_line, config | {"base": Path(args.base or EMBEDDED_BASE).name}, args.seed)
    result = {"recipes": recipes, "controls": controls, "passport": about}
    publish(result, markdown(result), "one_shot", args)
    return 0


def control_score(scores: dict[str, Any], control: str) -> float | None:
    return (scores["controls"].get(control) or {}).get("balanced_accuracy")


if __name__ == "__main__":
    sys.exit(main())
