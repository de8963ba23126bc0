"""From the results of jobs to the tables that are committed.

A cell is the mean over subjects and seeds. Its interval resamples subjects, each with all its seeds: runs of one
subject are not independent. The difference from the full system is tested on the same questions, see
`scoring.paired_lines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...passport import passport_line
from ..bootstrap import clustered_intervals
from ..findings import SIGNIFICANT
from ..scoring import paired_lines
from ..store import Line
from ..table import number
from .variants import FULL, Table

SCORES = (
    "balanced_accuracy", "accuracy", "false_accept_lookalike", "false_accept_stranger", "auroc", "bleu1", "bleu4",
    "appearance", "action", "location", "activation_rate",
)  # fmt: skip
TRAINING = ("loss", "steps", "clips")
COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "false_accept_lookalike": "accepts look-alikes",
    "false_accept_stranger": "accepts strangers",
    "auroc": "AUROC",
    "bleu1": "BLEU-1",
    "activation_rate": "heads on",
    "loss": "loss",
    "steps": "steps",
}


def table_of(
    table: Table, results: dict[str, list[dict[str, Any]]], lines: dict[str, list[Line]], seed: int
) -> dict[str, Any]:
    """One table as JSON.

    Args:
        results: of every variant, what `run_job` returned for each subject and seed.
        lines: of every variant, all its answer lines.
        seed: of the resampling.

    Returns:
        `rows`: per row `title`, `paper` (its accuracy there), `n` (runs), `scores` (mean and interval by name),
        `against_full` (variant minus full in balanced accuracy: difference, interval, p; None for the full system
        itself), and `runs`: balanced accuracy by subject and seed.
    """
    rows = []
    for row in table.rows:
        own = results[row.variant.name]
        same = row.variant.name == FULL.name
        rows.append(
            {
                "title": row.title,
                "variant": row.variant.name,
                "paper": row.paper,
                "n": len(own),
                "scores": means(own, seed),
                "against_full": None if same else paired_lines(lines[row.variant.name], lines[FULL.name], seed),
                "runs": {f"{r['subject']} seed {r['seed']}": r["scores"]["balanced_accuracy"] for r in own},
            }
        )
    return {
        "table": table.name, "title": table.title, "about": table.about, "source": table.source, "rows": rows,
        "reading": reading(rows),
    }  # fmt: skip


def means(results: Sequence[dict[str, Any]], seed: int) -> dict[str, dict[str, Any] | None]:
    """Per score `mean` and `interval` (None for one subject); None where no run has it."""
    columns = {name: [r["scores"][name] for r in results] for name in SCORES}
    columns |= {name: [r["training"][name] for r in results] for name in TRAINING}
    arrays = {name: np.array([np.nan if v is None else v for v in values]) for name, values in columns.items()}

    def statistic(index: np.ndarray) -> dict[str, float | None]:
        picked = {name: values[index] for name, values in arrays.items()}
        return {name: None if np.isnan(v).all() else float(np.nanmean(v)) for name, v in picked.items()}

    subjects = [r["subject"] for r in results]
    spans = clustered_intervals(subjects, [0] * len(subjects), statistic, seed=seed)
    found = statistic(np.arange(len(results)))
    return {n: None if value is None else {"mean": value, "interval": spans[n]} for n, value in found.items()}


def reading(rows: Sequence[dict[str, Any]]) -> str:
    """What the table says, and whether the paper's order of its rows holds."""
    tested = [row for row in rows if row["against_full"] is not None]
    worse, better, open_ones = [], [], []
    for row in tested:
        found = row["against_full"]
        group = open_ones if found["p"] >= SIGNIFICANT else worse if found["difference"] < 0 else better
        group.append(row["title"])
    parts = [
        f"{words}: {', '.join(titles)}."
        for words, titles in (
            ("Worse than the full system", worse),
            ("Better than the full system", better),
            (f"Not told apart from it (p of {SIGNIFICANT} or more)", open_ones),
        )
        if titles
    ]
    known = [row for row in rows if row["paper"] is not None]
    if len(known) > 1:
        paper = [row["title"] for row in sorted(known, key=lambda row: row["paper"])]
        ours = [row["title"] for row in sorted(known, key=lambda row: row["scores"]["balanced_accuracy"]["mean"])]
        same = "as in the paper" if ours == paper else f"the paper has {' < '.join(paper)}"
        parts.append(f"From worst to best: {' < '.join(ours)}; {same}.")
    return " ".join(parts)


def markdown(result: dict[str, Any]) -> str:
    """A table as the page that is committed."""
    config = result["passport"]["config"]
    lines = [
        f"# Ablation: {result['title'].lower()}",
        "",
        passport_line(result["passport"]),
        "",
        f"{config['data']}; subjects: {config['subjects']}; seeds: {', '.join(map(str, config['seeds']))}; "
        f"{config['subject_init']}. {result['about']}",
        "",
    ]
    heads = ["", *COLUMNS.values(), "against full", *(["paper's accuracy"] if result["source"] else [])]
    lines += [_line(heads), "|---" * len(heads) + "|"]
    for row in result["rows"]:
        cells = [row["title"], *(_cell(name, row["scores"][name]) for name in COLUMNS), _against(row["against_full"])]
        if result["source"]:
            cells.append("" if row["paper"] is None else f"{row['paper']:.3f}")
        lines.append(_line(cells))
    lines += [
        "",
        result["reading"],
        "",
        "Cells: mean over subjects and seeds, with the 95 % interval where subjects are resampled. Against full: "
        "difference in balanced accuracy on the same questions, its interval, and p of a permutation test. Heads on: "
        "share of routed heads on the test clips. Loss: of the language model, last steps of training."
        + (f" Paper: {result['source']}." if result["source"] else ""),
    ]
    if config["data"].startswith("Cartoon"):
        lines += ["", "A demonstrator and a test bench: these numbers say nothing about real people."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(name: str, value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    if name == "steps":
        return f"{value['mean']:.0f}"
    return number(value["mean"], value["interval"] if name == "balanced_accuracy" else None)


def _against(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    span = "" if found["interval"] is None else " [{:+.2f}, {:+.2f}]".format(*found["interval"])
    return f"{found['difference']:+.2f}{span}, p {'< 0.001' if found['p'] < 0.001 else format(found['p'], '.2g')}"
