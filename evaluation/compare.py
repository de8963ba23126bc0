"""Several evaluated systems in one table, and what they are together.

Systems that answered the same questions (variants for one subject) are compared with the first by the paired test.
Systems of different subjects are also pooled: all their answers are scored as one, with intervals that draw subjects
first and videos within them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from .findings import p_value
from .scoring import ANSWERS, paired_lines, read_controls, read_lines, score_lines
from .table import number

# The paper's columns, and those that it lacks.
COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "false_accept_lookalike": "accepts look-alikes",
    "auroc": "AUROC",
    "bleu1": "BLEU-1",
    "bertscore": "BERTScore",
    "es": "ES",
    "dc": "DC",
    "es_rule": "ES rule",
    "dc_rule": "DC rule",
}


def compare(systems: Mapping[str, tuple[Path, dict[str, Any]]], seed: int = 0) -> dict[str, Any]:
    """Compares evaluated systems.

    Args:
        systems: by name, the folder with `answers.jsonl` and the scores of each; at least one.

    Returns:
        `systems`: `{"name", "subject", "scores", "interval", "paired"}` each, `paired` being the test against the
        first on the same questions (None for the first, or if there are none); `pooled`: scores of all answers, if
        there are several subjects, else None.

    Raises:
        PVChatError: no system, or an answers file cannot be read.
    """
    if not systems:
        raise PVChatError("There is nothing to compare; pass at least one adapter or model.")
    answers = {name: read_lines(folder / ANSWERS) for name, (folder, _) in systems.items()}
    first = next(iter(answers.values()))
    rows = []
    for name, (_, scores) in systems.items():
        same = answers[name] is not first and _questions(answers[name]) == _questions(first)
        rows.append(
            {
                "name": name,
                "subject": scores["details"]["subject"],
                "scores": _columns(scores),
                "interval": scores["intervals"]["existence"]["balanced_accuracy"],
                "paired": paired_lines(answers[name], first, seed) if same else None,
            }
        )
    subjects = [row["subject"] for row in rows]
    pooled = None
    if len(set(subjects)) == len(subjects) > 1:
        pooled = _pool({name: folder for name, (folder, _) in systems.items()}, answers, seed)
    return {"systems": rows, "pooled": pooled}


def _pool(folders: Mapping[str, Path], answers: Mapping[str, list[dict[str, Any]]], seed: int) -> dict[str, Any]:
    """Scores of all subjects' answers, with the controls that all of them have."""
    each = [read_controls(folder / ANSWERS) for folder in folders.values()]
    common = set.intersection(*(set(controls) for controls in each))
    controls = {name: [line for own in each for line in own[name]] for name in sorted(common)}
    return score_lines([line for lines in answers.values() for line in lines], controls, seed=seed)


def _questions(lines: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(line["subject"], line["qa_id"]) for line in lines}


def _columns(scores: dict[str, Any]) -> dict[str, float | None]:
    flat = scores["existence"] | scores | {"bertscore": (scores["bertscore"] or {}).get("f1")}
    return {name: flat[name] for name in COLUMNS}


def compare_table(result: dict[str, Any]):
    """A rich table of what `compare` returned."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Systems on their test clips", title_justify="left")
    table.add_column("system")
    for label in COLUMNS.values():
        table.add_column(label, justify="right")
    table.add_column("against the first", justify="right")
    for row in result["systems"]:
        test = row["paired"]
        against = "" if test is None else f"{test['difference']:+.2f}, {p_value(test['p'])}"
        table.add_row(escape(row["name"]), *_cells(row["scores"], row["interval"]), against)
    pooled = result["pooled"]
    if pooled:
        table.add_section()
        interval = pooled["intervals"]["existence"]["balanced_accuracy"]
        table.add_row(f"all {pooled['details']['subject']}", *_cells(_columns(pooled), interval), "", style="bold")
    return table


def _cells(values: dict[str, float | None], interval: list[float] | None) -> list[str]:
    return [number(value, interval if name == "balanced_accuracy" else None) for name, value in values.items()]
