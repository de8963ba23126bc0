"""Draws the README's picture from a finished demo run.

python examples/demo_picture.py runs/demo docs/demo.png
"""

import json
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pvchat.dataset_builder.video_io import read_video
from pvchat.demo import ASSETS, NAME

RIGHT = {"the subject": "Yes", "a look-alike": "No", "a stranger": "No"}


def draw(run: Path, target: Path) -> None:
    answers = json.loads((run / "report" / "demo_answers.json").read_text())
    scores = json.loads((run / "report" / "scores.json").read_text())
    figure = plt.figure(figsize=(11.5, 5.4), dpi=100)
    grid = figure.add_gridspec(2, 6, height_ratios=(1.0, 1.0), hspace=0.75)
    clips = [(ASSETS / "reference.mp4", "the one reference clip", f"learned as {NAME}", "black")]
    for item in answers:
        answer = item["answer"]
        asked = "\n".join(textwrap.wrap(item["question"], 26) + textwrap.wrap(f"→ {answer}", 26))
        decides = answer.split(",")[0] in ("Yes", "No")
        color = "black" if not decides else "tab:green" if answer.startswith(RIGHT[item["truth"]]) else "tab:red"
        clips.append((run / "test" / item["clip"], f"new clip: {item['truth']}", asked, color))
    for column, (path, title, text, color) in enumerate(clips):
        axes = figure.add_subplot(grid[0, column])
        frames, _ = read_video(path)
        axes.imshow(frames[len(frames) // 2])
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(text, fontsize=8, color=color)
    bars = figure.add_subplot(grid[1, :3])
    rows = {"with adapter": scores["existence"]["balanced_accuracy"]}
    rows |= {name.replace("_", " "): c["balanced_accuracy"] for name, c in scores["controls"].items() if c}
    rows = {name: value for name, value in rows.items() if value is not None}
    bars.barh(list(rows)[::-1], list(rows.values())[::-1], color=["0.6"] * (len(rows) - 1) + ["tab:blue"])
    for index, value in enumerate(list(rows.values())[::-1]):
        bars.text(value + 0.01, index, f"{value:.2f}", va="center", fontsize=8)
    bars.set_xlim(0, 1.08)
    bars.tick_params(labelsize=8)
    bars.set_title(f'balanced accuracy, "is {NAME} here?"', fontsize=9)
    curve = figure.add_subplot(grid[1, 3:])
    before = 0
    for stage in ("stage1", "stage2"):
        steps = json.loads((run / stage / "history.json").read_text())["steps"]
        curve.plot([before + s["step"] for s in steps], [s["active_heads"] for s in steps], label=stage)
        before += len(steps)
    curve.axhspan(0.4, 0.6, color="tab:green", alpha=0.15, label="target 0.5 ± 0.1")
    curve.set_ylim(0, 1.05)
    curve.set_xlabel("step", fontsize=8)
    curve.tick_params(labelsize=8)
    curve.legend(fontsize=8)
    curve.set_title("share of active routed heads, with SPR and HAE", fontsize=9)
    figure.savefig(target, bbox_inches="tight")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
