"""Scores beside their controls, and the sentence that they add up to."""

from __future__ import annotations

from typing import Any, NamedTuple

from .scoring import CATEGORIES, CONTROLS

TITLES = {
    "constant_yes": "always yes",
    "constant_no": "always no",
    "text_only": "no picture (text only)",
    "no_adapter": "base without the adapter",
    "wrong_adapter": "another subject's adapter",
    "reference_in_prompt": "reference clip in the prompt",
    "embedding_gate": "face comparison alone",
}
COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "false_accept_lookalike": "accepts look-alikes",
    "false_accept_stranger": "accepts strangers",
    "auroc": "AUROC",
    "ece": "ECE",
}
LOWER_IS_BETTER = ("false_accept_lookalike", "false_accept_stranger", "ece")


class Verdict(NamedTuple):
    """`passed`: better than every control, and the interval is above the best one."""

    passed: bool
    text: str


def verdict(scores: dict[str, Any]) -> Verdict:
    """Whether the adapter was worth its training, by balanced accuracy on existence questions."""
    subject = scores["details"]["subject"]
    score = scores["existence"]["balanced_accuracy"]
    if score is None:
        return Verdict(False, f"No verdict: the test clips are all with, or all without {subject}.")
    known = {name: control for name, control in scores["controls"].items() if control}
    best = max(known, key=lambda name: known[name]["balanced_accuracy"])
    bar = known[best]["balanced_accuracy"]
    against = f"the best control ({TITLES[best]}) reaches {bar:.2f}"
    reached = f"balanced accuracy {score:.2f}"
    missing = [TITLES[name] for name in ("no_adapter", "wrong_adapter") if not known.get(name)]
    interval = scores["intervals"]["existence"]["balanced_accuracy"]
    if score <= bar:
        return Verdict(False, f"Not worth its training: {reached}, while {against}.")
    if interval is None or interval[0] <= bar:
        return Verdict(False, f"Ahead of the controls, not for certain: {reached}, {against}; use more test clips.")
    if missing:
        return Verdict(False, f"Ahead of the controls that ran: {reached}, {against}; not run: {', '.join(missing)}.")
    return Verdict(True, f"The adapter beats every control: {reached}, {against}.")


def score_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per system: `title`, `scores` (None: not run), `intervals`, `reason` why it is missing."""
    rows = [
        {
            "name": "adapter",
            "title": scores["details"]["subject"],
            "scores": scores["existence"],
            "intervals": scores["intervals"]["existence"],
            "reason": None,
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
            }
        )
    return rows


def text_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows about the texts: BLEU, and per category exactness and refusals; the base's value beside each."""
    base, intervals = scores["controls"]["no_adapter"] or {}, scores["intervals"]
    rows = [
        {"title": f"BLEU-{order}, all answers", "value": scores[f"bleu{order}"], "n": scores["details"]["questions"],
         "interval": intervals[f"bleu{order}"], "base": base.get(f"bleu{order}")}
        for order in (1, 4)
    ]  # fmt: skip
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
    """A rich renderable: existence with controls, texts, and the verdict below."""
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
    for row in score_rows(scores):
        cells = ["-"] * len(COLUMNS)
        if row["scores"]:
            spans = row["intervals"] or {}
            cells = [
                number(row["scores"][name], spans.get(name) if name == "balanced_accuracy" else None)
                for name in COLUMNS
            ]
        systems.add_row(escape(row["title"]), *cells, style="bold" if row["name"] == "adapter" else None)
    texts = Table(title="What the answers say", title_justify="left")
    for label in ("score", "value", "base alone", "n"):
        texts.add_column(label, justify="left" if label == "score" else "right")
    for row in text_rows(scores):
        texts.add_row(row["title"], number(row["value"], row["interval"]), number(row["base"]), str(row["n"]))
    result = verdict(scores)
    return Group(systems, texts, Text(result.text, style="bold green" if result.passed else "bold yellow"))
