"""Scores beside their controls, and the sentence that they add up to."""

from __future__ import annotations

from typing import Any

from .findings import TITLES, p_value, verdict
from .scoring import CATEGORIES, CONTROLS, RULES

COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "false_accept_lookalike": "accepts look-alikes",
    "false_accept_stranger": "accepts strangers",
    "auroc": "AUROC",
    "ece": "ECE",
}
TEXT_TITLES = {
    "bertscore": "BERTScore F1",
    "es": "ES, judged (0 to 5)",
    "dc": "DC, judged (0 to 5)",
    "es_rule": "ES by rules (0 to 5)",
    "dc_rule": "DC by rules (0 to 5)",
}
LOWER_IS_BETTER = ("false_accept_lookalike", "false_accept_stranger", "ece")


def score_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per system: `title`, `scores` (None: not run), `intervals`, `reason` why it is missing, and `paired`: by
    how much the adapter is better (None for itself)."""
    rows = [
        {
            "name": "adapter",
            "title": scores["details"]["subject"],
            "scores": scores["existence"],
            "intervals": scores["intervals"]["existence"],
            "reason": None,
            "paired": None,
        }
    ]
    for name in CONTROLS:
        rows.append(
            {
                "name": name,
                "title": TITLES[name],
                "scores": scores["controls"][name],
                "intervals": scores["intervals"]["controls"][name],
                "reason": scores["details"]["missing"].get(f"controls.{name}"),
                "paired": scores["paired"][name],
            }
        )
    return rows


def text_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows about the texts: BLEU, BERTScore, ES, DC, the rules, and per category exactness and refusals; the base's
    value beside each. What was not computed has no row."""
    base, intervals = scores["controls"]["no_adapter"] or {}, scores["intervals"]
    rows = [
        {"title": f"BLEU-{order}, all answers", "value": scores[f"bleu{order}"], "n": scores["details"]["questions"],
         "interval": intervals[f"bleu{order}"], "base": base.get(f"bleu{order}")}
        for order in (1, 4)
    ]  # fmt: skip
    for name, title in TEXT_TITLES.items():
        value = scores[name]["f1"] if name == "bertscore" and scores[name] else scores[name]
        if value is not None:
            rows.append(
                {"title": title, "value": value, "n": scores["details"]["questions"],
                 "interval": intervals[name], "base": base.get(name) if name in RULES else None}
            )  # fmt: skip
    labels = {"bleu1": "BLEU-1", "exact": "exactly right (truth known)", "refused": "says so when absent"}
    for category in CATEGORIES:
        found = scores["categories"][category]
        for name, label in labels.items():
            if found[name] is None:
                continue
            rows.append(
                {
                    "title": f"{category}: {label}",
                    "value": found[name],
                    "n": found.get(f"{name}_n", found["n"]),
                    "interval": (intervals["categories"][category] or {}).get(name),
                    "base": (base.get("categories") or {}).get(category, {}).get(name),
                }
            )
    return rows


def number(value: float | None, interval: list[float] | None = None) -> str:
    """`0.93 [0.88, 0.97]`; a dash for what is absent."""
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def scores_table(scores: dict[str, Any]):
    """A rich renderable: existence with controls, texts, and below what the numbers rest on, findings, verdict."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    subject, videos = escape(scores["details"]["subject"]), scores["details"]["videos"]
    title = f"Is {subject} there? {scores['existence']['n']} questions on {videos} clips"
    systems = Table(title=title, title_justify="left")
    systems.add_column("who answers")
    for label in COLUMNS.values():
        systems.add_column(label, justify="right")
    systems.add_column("adapter is better by", justify="right")
    for row in score_rows(scores):
        cells = ["-"] * len(COLUMNS)
        if row["scores"]:
            spans = row["intervals"] or {}
            cells = [
                number(row["scores"][name], spans.get(name) if name == "balanced_accuracy" else None)
                for name in COLUMNS
            ]
        cells.append(better_by(row["paired"]))
        systems.add_row(escape(row["title"]), *cells, style="bold" if row["name"] == "adapter" else None)
    texts = Table(title="What the answers say", title_justify="left")
    for label in ("score", "value", "base alone", "n"):
        texts.add_column(label, justify="left" if label == "score" else "right")
    for row in text_rows(scores):
        texts.add_row(row["title"], number(row["value"], row["interval"]), number(row["base"]), str(row["n"]))
    result = verdict(scores)
    notes = [Text(line, style="dim") for line in (*methods(scores), *absences(scores))]
    findings = [Text(f"Note: {line}", style="yellow") for line in scores["details"]["findings"]]
    words = Text(result.text, style="bold green" if result.passed else "bold yellow")
    return Group(systems, texts, *notes, *findings, words)


def better_by(test: dict[str, Any] | None) -> str:
    """ "+0.12, p = 0.01"; empty without a test."""
    return "" if test is None else f"{test['difference']:+.2f}, {p_value(test['p'])}"


def methods(scores: dict[str, Any]) -> list[str]:
    """Lines that say how the numbers were made: test set, BLEU's signature, BERTScore's backbone, judges."""
    details = scores["details"]
    made, method = details["composition"], details["method"]
    origins = ", ".join(f"{count} {name}" for name, count in made["origins"].items())
    lines = [
        f"Test clips: {made['clips_present']} with, {made['clips_absent']} without the subject ({origins}).",
        f"BLEU: {method['bleu1']} and order:4. Intervals: {method['intervals']}. Seed {method['seed']}.",
    ]
    if scores["bertscore"]:
        about = scores["bertscore"]
        backbone = f"{about['backbone']}, layer {about['layer']} ({about['hash']})"
        lines.append(f"BERTScore: {backbone}; {about['empty']} empty answers score 0.")
    if details["judge"]:
        for judge in details["judge"]["judges"]:
            dropped = f", {judge['invalid']} of {judge['n']} without a valid rating" if judge["invalid"] else ""
            means = f"ES {number(judge['es'])}, DC {number(judge['dc'])}"
            lines.append(f"Judge {judge['judge']}, run {judge['run']}: {means}{dropped}.")
        for name, found in (details["judge"]["agreement"] or {}).items():
            values = f"weighted kappa {number(found['kappa'])}, equal {number(found['exact'])}, n = {found['n']}"
            lines.append(f"Agreement on {name.upper()}: {values}.")
    return lines


def absences(scores: dict[str, Any]) -> list[str]:
    """ "ES: not computed: ...", one line per reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in scores["details"]["missing"].items():
        title = TITLES.get(name.removeprefix("controls."), name.upper() if len(name) == 2 else name)
        reasons.setdefault(reason, []).append(title)
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
