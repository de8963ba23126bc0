"""The figures of a report, each a matplotlib figure made from scores, answer lines or training histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import metrics
from .scoring import Line, existence_answers
from .table import score_rows

INK, MUTED, GRID = "#1d2733", "#7b8794", "#e4e8ec"
SUBJECT, LOOKALIKE, STRANGER, OTHER = "#0b7285", "#d9480f", "#5f6b7a", "#a37f14"
BAND = 0.1  # half-width of the band around the target share of active heads
MAX_BANDWIDTH = 60  # markers per row of a margin plot that are still told apart
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
}


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def systems(scores: dict[str, Any]) -> Figure:
    """Balanced accuracy of the adapter and its controls, with intervals."""
    rows = [row for row in score_rows(scores) if row["scores"] and row["scores"]["balanced_accuracy"] is not None]
    figure, (axes,) = _axes(8.2, 0.9 + 0.36 * len(rows))
    for height, row in enumerate(reversed(rows)):
        own = row["name"] == "adapter"
        value = row["scores"]["balanced_accuracy"]
        span = (row["intervals"] or {}).get("balanced_accuracy")
        color = SUBJECT if own else MUTED
        axes.barh(height, value, height=0.58, color=color, alpha=1.0 if own else 0.45)
        if span and span[0] < span[1]:
            axes.plot(span, [height, height], color=INK, linewidth=1.4, solid_capstyle="butt")
        right = max(value, span[1] if span else value)
        axes.text(right + 0.015, height, f"{value:.2f}", va="center", color=INK, weight="bold" if own else "normal")
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), [row["title"] for row in reversed(rows)], color=INK)
    axes.set_xlim(0, 1.09)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("balanced accuracy (line: 95 % interval; dashes: a constant answer)")
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)
    return figure


def training(histories: Sequence[dict[str, Any]]) -> Figure:
    """Loss of the language model, share of active heads, and the two sparsity losses over all steps of both stages."""
    figure, panels = _axes(10.5, 2.9, columns=3)
    titles = ("Loss of the language model", "Active routed heads", "Sparsity losses")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.grid(axis="y")
        axes.set_xlabel("optimiser step")
    start, routed = 0, False
    for number, history in enumerate(histories):
        steps = history["steps"]
        x = start + np.arange(1, len(steps) + 1)
        colors = (SUBJECT, OTHER)
        _line(panels[0], x, [step["lm_loss"] for step in steps], colors[0])
        if steps and "active_heads" in steps[0]:
            routed = True
            target = history["target_active_heads"]
            edges = [start + 0.5, start + len(steps) + 0.5]
            panels[1].fill_between(edges, target - BAND, target + BAND, color=SUBJECT, alpha=0.12, linewidth=0)
            _line(panels[1], x, [step["active_heads"] for step in steps], colors[0])
            for name, color in (("spr", SUBJECT), ("hae", LOOKALIKE)):
                label = name.upper() if number == 0 else None
                _line(panels[2], x, [step[name] for step in steps], color, label)
        start += len(steps)
        for axes in panels:
            if number:
                axes.axvline(start - len(steps) + 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    panels[0].set_ylim(0, 1.2 * max(step["lm_loss"] for history in histories for step in history["steps"]))
    panels[1].set_ylim(0, 1.05)
    for axes in panels:
        axes.set_xlim(0, start + 1)
    _stage_names(panels[0], histories)
    if routed:
        panels[2].legend(frameon=False)
    else:
        for axes in panels[1:]:
            axes.text(0.5, 0.5, "no routed heads", transform=axes.transAxes, ha="center", color=MUTED)
    return figure


def _line(axes: Axes, x: np.ndarray, y: Sequence[float], color: str, label: str | None = None) -> None:
    axes.plot(x, y, color=color, linewidth=1.6, marker="o" if len(x) < 25 else None, markersize=3, label=label)


def _stage_names(axes: Axes, histories: Sequence[dict[str, Any]]) -> None:
    start = 0
    total = sum(len(history["steps"]) for history in histories)
    for history in histories:
        middle = start + (len(history["steps"]) + 1) / 2
        axes.annotate(
            f"stage {history['stage']}", (middle / (total + 1), 0.98), xycoords="axes fraction", ha="center", va="top",
            color=MUTED, fontsize=8,
        )  # fmt: skip
        start += len(history["steps"])


def margins(lines: Sequence[Line], subject: str) -> Figure:
    """How far the model leans to "Yes" on clips of the subject, of look-alikes and of strangers."""
    groups = margin_groups(lines, subject)
    figure, (axes,) = _axes(5.6, 1.2 + 0.62 * len(groups))
    rng = np.random.default_rng(0)
    for height, (_, color, values) in enumerate(reversed(groups)):
        spread = rng.uniform(-0.26, 0.26, len(values))
        axes.scatter(values, height + spread, s=16, color=color, alpha=0.55 if len(values) < MAX_BANDWIDTH else 0.3,
                     linewidth=0)  # fmt: skip
        axes.plot([np.median(values)] * 2, [height - 0.36, height + 0.36], color=INK, linewidth=2)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(groups)), [f"{name} ({len(v)})" for name, _, v in reversed(groups)], color=INK)
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set_xlabel('leans to "No"   <   log-odds of "Yes"   >   leans to "Yes"')
    axes.tick_params(left=False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    return figure


def margin_groups(lines: Sequence[Line], subject: str) -> list[tuple[str, str, np.ndarray]]:
    """Title, colour and margins (N,) of each kind of clip that there is."""
    answers = existence_answers([line for line in lines if line["category"] == "existence"])
    negative = ~answers.present
    others = negative & ~np.isin(answers.origin, (metrics.LOOKALIKE, metrics.STRANGER))
    groups = [
        (subject, SUBJECT, answers.margin[answers.present]),
        ("look-alikes", LOOKALIKE, answers.margin[negative & (answers.origin == metrics.LOOKALIKE)]),
        ("strangers", STRANGER, answers.margin[negative & (answers.origin == metrics.STRANGER)]),
        ("other people", OTHER, answers.margin[others]),
    ]
    return [group for group in groups if len(group[2])]


def roc(lines: Sequence[Line]) -> Figure:
    """Share of accepted clips of the subject against accepted clips of others, all others and look-alikes alone."""
    answers = existence_answers([line for line in lines if line["category"] == "existence"])
    figure, (axes,) = _axes(3.7, 3.4)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    curves = [("everybody else", SUBJECT, np.ones(len(answers.present), bool))]
    alike = answers.origin == metrics.LOOKALIKE
    if alike.any():
        curves.append(("look-alikes", LOOKALIKE, answers.present | alike))
    for name, color, chosen in curves:
        part = answers.take(chosen)
        area = metrics.auroc(part.present, part.margin)
        if area is None:
            continue
        curve = metrics.roc_curve(part.present, part.margin)
        axes.plot(*curve, color=color, linewidth=1.8, label=f"{name}: {area:.2f}")
    axes.set_xlabel("share of others accepted")
    axes.set_ylabel("share of the subject's accepted")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.grid()
    axes.legend(frameon=False, loc="lower right", title="AUROC against", title_fontsize=9, fontsize=9)
    return figure
