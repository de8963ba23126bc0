"""Do SPR and HAE hold the share of active heads at its target, and what happens without them?

    python -m benchmarks.activation_rate
    python -m benchmarks.activation_rate --out runs/activation_rate --write docs/results

A cast member is learned from one clip as in `pvchat demo`; then the same dataset is trained from the same seed once
more with both losses off. The report of the run shows both curves. "Held" means: from some step on, and until the end,
the mean over 5 steps stays within 0.1 of the target.

The embedded model and its cartoon world are a test bench: the numbers say nothing about real people.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from pvchat.cli import calm_libraries
from pvchat.dataset_builder import load_local
from pvchat.dataset_builder.cartoon import cast
from pvchat.evaluation import figures, write_report
from pvchat.evaluation.ablation.subjects import write_cast_files
from pvchat.evaluation.report import WITHOUT, read_histories
from pvchat.passport import passport, passport_line
from pvchat.runs import EMBEDDED_BASE, personalize
from pvchat.trainers.run import base_settings, merged_settings, train_subject

from .command import command_line, make_parser, publish

TEST_POSITIVES = 20  # test clips of the member, as many of others
TOLERANCE = 0.1
WINDOW = 5  # steps; a step sees a handful of clips, and its rate is noisy
OFF = {"train": {"spr": False, "hae": False}}


def curve_of(histories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of a run: the curve, its end, and from which step on it is within the tolerance (None: never)."""
    rates = np.array([step["active_heads"] for history in histories for step in history["steps"]])
    target = histories[0]["target_active_heads"]
    smooth = np.convolve(rates, np.ones(WINDOW) / WINDOW, mode="valid")  # entry i: steps i to i + WINDOW - 1
    outside = np.flatnonzero(np.abs(smooth - target) > TOLERANCE)
    first = int(outside[-1]) + 1 if len(outside) else 0
    losses = [step["lm_loss"] for history in histories for step in history["steps"]]
    return {
        "steps": len(rates),
        "target": target,
        "held_from_step": first + WINDOW if first < len(smooth) else None,
        "last_10_steps": float(rates[-10:].mean()),
        "lowest": float(smooth.min()),
        "highest": float(smooth.max()),
        "lm_loss_last_10_steps": float(np.mean(losses[-10:])),
        "active_heads": [round(float(rate), 4) for rate in rates],
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as the page that is committed."""
    lines = [
        "# Share of active heads, with SPR and HAE and without",
        "",
        passport_line(result["passport"]),
        "",
        "A demonstrator and a test bench: these numbers say nothing about real people.",
        "",
        "| | target | within 0.1 from step | last 10 steps | lowest | highest | loss, last 10 steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, name in (("with SPR and HAE", "with"), ("without", "without")):
        row = result[name]
        held = "never" if row["held_from_step"] is None else f"{row['held_from_step']} of {row['steps']}"
        lines.append(
            f"| {title} | {row['target']:.2f} | {held} | {row['last_10_steps']:.3f} | {row['lowest']:.3f} "
            f"| {row['highest']:.3f} | {row['lm_loss_last_10_steps']:.3f} |"
        )
    lines += [
        "",
        "![Loss, share of active heads, SPR and HAE over the optimiser steps](activation_rate.png)",
        "",
        "Lowest, highest and the step from which it holds are of means over 5 steps. Routers start open (1.0), so "
        "that the base's Q-Former is unchanged.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("activation_rate", __doc__, "activation_rate.{json,md,png}")
    parser.add_argument("--out", type=Path, default=Path("runs/activation_rate"), help="work folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="processor threads (default: PyTorch's)")
    args = parser.parse_args(argv)
    calm_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    command = command_line("activation_rate", argv)
    progress = sys.stderr.isatty()
    (member,) = cast(1)
    files = write_cast_files(member, args.out / "files", args.seed, TEST_POSITIVES)
    run = personalize(
        files.reference,
        member.name,
        out=args.out / "run",
        gallery=files.gallery,
        test_clips=files.test_clips,
        seed=args.seed,
        progress=progress,
        command=command,
    )
    dataset = load_local(run.folder / "dataset")
    train_subject(EMBEDDED_BASE, dataset, run.folder / WITHOUT, seed=args.seed, settings=OFF, progress=progress)
    page = write_report(run.folder / "report", dataset, run.folder)
    histories = {"with": read_histories(run.folder), "without": read_histories(run.folder / WITHOUT)}
    config = {"base": EMBEDDED_BASE.name, "dataset": dataset.hash, "threads": torch.get_num_threads()}
    config["settings"] = merged_settings(base_settings(EMBEDDED_BASE))
    result = {name: curve_of(own) for name, own in histories.items()}
    result["passport"] = passport(command, config, args.seed)
    publish(result, markdown(result), "activation_rate", args)
    if args.write:
        with matplotlib.rc_context(figures.STYLE):
            figures.training(histories["with"], histories["without"]).savefig(args.write / "activation_rate.png")
    print(f"Report: {page}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
