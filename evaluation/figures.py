"""The figures of a report, each a matplotlib figure made from scores, answer lines or training histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import metrics
from .findings import NOT_A_BAR
from .scoring import Line, existence_answers
from .table import score_rows

INK, MUTED, GRID = "#1d2733", "#7b8794", "#e4e8ec"
SUBJECT, LOOKALIKE, STRANGER, OTHER = "#0b7285", "#d9480f", "#5f6b7a", "#a37f14"
SMOOTHED = 5  # steps of a running mean, odd
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
    rows = [row for row in rows if row["name"] not in NOT_A_BAR]  # answers to other questions
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


def training(histories: Sequence[dict[str, Any]], without: Sequence[dict[str, Any]] = ()) -> Figure:
    """Loss of the language model, share of active heads, SPR and HAE over all optimiser steps of both stages.

    Args:
        histories: what `history.json` of each stage holds.
        without: the same of a run without SPR and HAE, drawn in grey beside it.
    """
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    panels = list(figure.subplots(2, 2).flat)
    titles = ("Loss of the language model", "Share of routed heads that are on", "SPR", "HAE")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.grid(axis="y")
    loss, active, spr, hae = panels
    x = _steps(histories)
    total = sum(map(len, x))
    label, other_label = ("with SPR and HAE", "without") if without else (None, None)
    _line(loss, np.concatenate(x), _values(histories, "lm_loss"), SUBJECT, label)
    if without:
        _line(loss, np.concatenate(_steps(without)), _values(without, "lm_loss"), MUTED, other_label, dashed=True)
    loss.set_ylim(0, 1.2 * max(_values([*histories, *without], "lm_loss")))
    routed = any("active_heads" in step for history in histories for step in history["steps"])
    if routed:
        target = histories[0]["target_active_heads"]
        active.axhspan(target - BAND, target + BAND, color=SUBJECT, alpha=0.12, linewidth=0)
        active.axhline(target, color=SUBJECT, linewidth=0.8, linestyle=(0, (4, 3)))
        _line(active, np.concatenate(x), _values(histories, "active_heads"), SUBJECT, label)
        if without:
            _line(active, np.concatenate(_steps(without)), _values(without, "active_heads"), MUTED, other_label, True)
        values = np.array(_values(histories, "spr"))
        _line(spr, np.concatenate(x), values, SUBJECT, "SPR")
        _line(spr, np.concatenate(x), values * _values(histories, "beta"), OTHER, "times its coefficient β")
        _line(hae, np.concatenate(x), _values(histories, "hae"), LOOKALIKE)
        spr.legend(frameon=False)
        for axes in (spr, hae):
            axes.set_ylim(bottom=0)
    else:
        for axes in panels[1:]:
            axes.text(0.5, 0.5, "no routed heads", transform=axes.transAxes, ha="center", color=MUTED)
    active.set_ylim(0, 1.05)
    if without:
        active.legend(frameon=False)
    for axes in panels:
        axes.set_xlim(0, total + 1)
        for steps in x[1:]:
            axes.axvline(steps[0] - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    for axes in panels[2:]:
        axes.set_xlabel("optimiser step")
    _stage_names(loss, histories)
    return figure


def _steps(histories: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """Step numbers of each stage, counted on from the stage before."""
    ends = np.cumsum([len(history["steps"]) for history in histories])
    return [np.arange(1, len(h["steps"]) + 1) + end - len(h["steps"]) for h, end in zip(histories, ends, strict=True)]


def _values(histories: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [step[name] for history in histories for step in history["steps"]]


def _line(axes: Axes, x: np.ndarray, y: Sequence[float], color: str, label: str | None = None, dashed: bool = False):
    """A curve; a long one as its running mean, with the values faintly behind it."""
    style = {"color": color, "linewidth": 1.8, "linestyle": "--" if dashed else "-", "label": label}
    if len(x) < 25:
        axes.plot(x, y, marker="o", markersize=3, **style)
        return
    axes.plot(x, y, color=color, linewidth=0.8, alpha=0.35)
    axes.plot(x[SMOOTHED // 2 : -(SMOOTHED // 2)], np.convolve(y, np.ones(SMOOTHED) / SMOOTHED, "valid"), **style)


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


def head_maps(activation: dict[str, Any], subject: str) -> Figure:
    """Two maps, layers by heads, of how often a routed head is on for a subject token, and their difference.

    Args:
        activation: what `write_head_activation` returned, with both kinds of clips.
    """
    rows = [f"layer {row['layer']} {row['attention']}" for row in activation["rows"]]
    figure, panels = _axes(10.5, 1.5 + 0.42 * len(rows), columns=3)
    shift = np.array(activation["difference"]["active"])
    reach = max(0.05, float(np.abs(shift).max()))
    maps = (
        (f"{subject} in the clip", activation["present"]["active"], "YlGnBu", (0.0, 1.0), "{:.2f}"),
        (f"{subject} not in the clip", activation["absent"]["active"], "YlGnBu", (0.0, 1.0), "{:.2f}"),
        ("difference", shift, "RdBu_r", (-reach, reach), "{:+.2f}"),
    )
    for axes, (title, values, colors, (low, high), form) in zip(panels, maps, strict=True):
        values = np.array(values)
        image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto")
        axes.set_title(title)
        axes.set_xticks(range(values.shape[1]), [str(head) for head in activation["heads"]])
        axes.set_yticks(range(len(rows)), rows if axes is panels[0] else [], color=INK)
        axes.set_xlabel("head")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, shrink=0.9)
        for (row, column), value in np.ndenumerate(values):
            strong = (value - low) / (high - low)
            light = strong > 0.6 if colors == "YlGnBu" else abs(strong - 0.5) > 0.35
            axes.text(column, row, form.format(value), ha="center", va="center", fontsize=8,
                      color="white" if light else INK)  # fmt: skip
    return figure
