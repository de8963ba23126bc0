"""Balanced accuracy against training time: how many questions may share a step, and at which learning rates?

    python -m benchmarks.convergence --workers 2 --write docs/results
    python -m benchmarks.convergence --people 1 --start base

People of a cast of their own (not those that scores are published for) are learned by several schedules. In each,
every clip brings as many questions; a training pauses at fixed shares of them, answers the existence questions of the
test split, and goes on. Subject tokens start from the reference clip, as the embedded base has it, or from the base's
own, as in the paper, where all that is known about the person has to be learned. Time is that of the processor inside
optimiser steps, of one thread: encoding clips, pauses and other work on the machine are left out. Curves that are
finished are kept in the work folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import TrainerCallback

from pvchat.base_model import load_base
from pvchat.cli import calm_libraries
from pvchat.dataset_builder.cartoon import cast
from pvchat.evaluation import figures
from pvchat.evaluation.ablation.subjects import Subject, build_cast_dataset
from pvchat.evaluation.metrics import existence_scores
from pvchat.evaluation.runner import Asking
from pvchat.evaluation.scoring import existence_answers
from pvchat.files import write_json
from pvchat.passport import passport, passport_line
from pvchat.session import EMBEDDED_BASE, VideoChat
from pvchat.trainers.adapter import AdapterSettings, build_subject_model, start_from_clips
from pvchat.trainers.collator import training_rows
from pvchat.trainers.features import FeatureCache
from pvchat.trainers.run import STAGES, base_settings, merged_settings

from .command import command_line, make_parser, publish
from .schedules import PASSES, schedule

CAST_SEED = 101
SHARES = (0.1, 0.25, 0.5, 1.0)  # of the video stage's steps


class Setting(NamedTuple):
    """questions: of a clip in a step. clips: in a step. rate: factor on the base's learning rates."""

    questions: int
    clips: int
    rate: float

    @property
    def title(self) -> str:
        return f"{self.questions} x {self.clips}, rates x {self.rate:g}"


SETTINGS = (
    Setting(1, 2, 0.3),  # the reference's step
    Setting(1, 2, 1),
    Setting(6, 1, 1),
    Setting(18, 1, 1),
    Setting(18, 1, 3),
    Setting(6, 4, 1),  # the embedded base's
    Setting(6, 4, 3),
    Setting(6, 4, 10),
    Setting(18, 4, 1),
    Setting(18, 4, 3),
)
STARTS = {  # values of `AdapterSettings.subject_init`
    "reference": "what the base says about the reference clip",
    "base": "the base's own, which know nobody",
}


class Pauses(TrainerCallback):
    """Times the steps of a training, and asks between them.

    Args:
        ask: called without arguments; what it returns is kept.
        shares: of the steps, after which it is called.
        start: seconds that were spent before.
    """

    def __init__(self, ask, shares: Sequence[float] = (), start: float = 0.0):
        self.ask = ask
        self.shares = shares
        self.seconds = start
        self.points: list[dict[str, float]] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._begin = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.process_time() - self._begin
        if state.global_step in [max(1, round(share * state.max_steps)) for share in self.shares]:
            self.points.append({"seconds": self.seconds} | self.ask())


def curve(work: tuple[str, Setting, Subject], folder: Path, seed: int) -> list[dict[str, float]]:
    """One training: `seconds`, `balanced_accuracy` and `auroc` before the first step and at each pause."""
    start, setting, subject = work
    path = folder / "curves" / f"{subject.key}-{start}-{setting.title}-seed {seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    base, processor = load_base(EMBEDDED_BASE)
    settings = merged_settings(base_settings(EMBEDDED_BASE), schedule(*setting))
    shape = AdapterSettings(**{"profile": "light"} | settings["adapter"])
    model = build_subject_model(base, shape, seed)
    dataset = subject.dataset()
    videos = dataset.split("train")
    if start == "reference":
        start_from_clips(model, processor, [video.path for video in videos if video.origin == "original"])
    inner = model.get_base_model().model

    def ask() -> dict[str, float]:
        training, state = model.training, torch.get_rng_state()  # a pause changes nothing
        scores = recognition(VideoChat(model, processor, dataset.subject), dataset)
        model.train(training)
        torch.set_rng_state(state)
        return scores

    points, seconds, controller = [{"seconds": 0.0} | ask()], 0.0, None
    with tempfile.TemporaryDirectory() as out:
        for name, (trainer_class, config_class) in STAGES.items():
            args = config_class(
                out, seed=seed, disable_tqdm=True, save_strategy="no", **settings["train"] | settings[name]
            )
            rows = training_rows(videos, still=trainer_class.still)
            blocks = len(inner.vision_tower.layers)
            features = FeatureCache(inner, processor, folder / "features", blocks, trainer_class.still).fill(rows)
            pauses = Pauses(ask, SHARES if name == "2" else (), seconds)
            trainer = trainer_class(model, args, rows, processor, shape.profile, features=features, callbacks=[pauses])
            if controller is not None:
                trainer.controller.load_state_dict(controller)
            trainer.train()
            controller, seconds = trainer.controller.state_dict(), pauses.seconds
            points += pauses.points
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, points)
    return points


def recognition(chat: VideoChat, dataset) -> dict[str, float]:
    """Scores of the existence questions of the test split."""
    asking = Asking(chat, dataset, Path(), dataset.split("test"), progress=False)
    lines = asking.ask([line for line in asking.questions if line["category"] == "existence"])
    scores = existence_scores(existence_answers(lines))
    return {name: scores[name] for name in ("balanced_accuracy", "auroc")}


def build_subject(member, folder: Path, seed: int) -> Subject:
    return build_cast_dataset(
        member, folder / "subjects" / member.name.strip("<>"), base=str(EMBEDDED_BASE), recipe="light", seed=seed,
        positives=20,
    )  # fmt: skip


def means(curves: Sequence[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The mean curve of several people, point by point."""
    return [
        {name: float(np.mean([point[name] for point in points])) for name in points[0]}
        for points in zip(*curves, strict=True)
    ]


def figure(starts: dict[str, dict[str, Any]]) -> Figure:
    """Balanced accuracy and AUROC over processor seconds: a row to each start, a line to each setting."""
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(11, 3.6 * len(starts)), layout="constrained")
        for row, (start, found) in zip(drawn.subplots(len(starts), 2, squeeze=False), starts.items(), strict=True):
            for axes, name in zip(row, ("balanced_accuracy", "auroc"), strict=True):
                for title, points in found["settings"].items():
                    axes.plot([p["seconds"] for p in points], [p[name] for p in points], marker="o", ms=3, label=title)
                axes.set(xlabel="processor seconds in optimiser steps", ylabel=name.replace("_", " "))
                axes.set_title(f"from {STARTS[start]}", fontsize="small")
                axes.set_xscale("symlog", linthresh=10)
        drawn.legend(
            *axes.get_legend_handles_labels(), title="questions x clips\nof a step", loc="outside right upper"
        )
    return drawn


def markdown(result: dict[str, Any]) -> str:
    """The result as the page that is committed."""
    config = result["passport"]["config"]
    heads = ["start", *(f"{share:.0%}" for share in SHARES)]
    lines = [
        "# Accuracy against training time",
        "",
        passport_line(result["passport"]),
        "",
        f"Means of {config['people']} people of a cast of their own (seed {CAST_SEED}). Every clip brings "
        f"{PASSES['1']} questions in the image stage and {PASSES['2']} in the video stage; columns are shares of the "
        "latter. Rates: times those of the embedded base. Seconds: processor time of one thread in optimiser steps, "
        "to the end.",
    ]
    for start, found in result["starts"].items():
        lines += [
            "",
            f"## Subject tokens start from {STARTS[start]}",
            "",
            f"| questions x clips of a step | seconds | balanced accuracy: {' | '.join(heads)} | AUROC at the end |",
            "|---" * (len(heads) + 3) + "|",
        ]
        for title, points in found["settings"].items():
            cells = " | ".join(f"{point['balanced_accuracy']:.3f}" for point in points)
            lines.append(f"| {title} | {points[-1]['seconds']:.0f} | {cells} | {points[-1]['auroc']:.3f} |")
    lines += [
        "",
        "![Balanced accuracy and AUROC over processor seconds](convergence.png)",
        "",
        "A demonstrator and a test bench: these numbers say nothing about real people.",
    ]
    return "\n".join(lines) + "\n"


def start_worker(threads: int) -> None:
    calm_libraries()
    torch.set_num_threads(threads)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("convergence", __doc__, "convergence.{json,md,png}")
    parser.add_argument("--people", type=int, default=2, help="cast members (default: 2)")
    parser.add_argument("--start", choices=STARTS, help="of the subject tokens (default: one after the other)")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/convergence"), help="work folder")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, of one thread each (default: 1)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    calm_libraries()
    starts = [args.start] if args.start else list(STARTS)
    curves: dict[str, dict[str, list]] = {start: {setting.title: [] for setting in SETTINGS} for start in starts}
    with ProcessPoolExecutor(args.workers, get_context("spawn"), start_worker, (1,)) as pool:
        build = partial(build_subject, folder=args.out, seed=CAST_SEED)
        subjects = list(pool.map(build, cast(args.people, seed=CAST_SEED)))
        work = list(product(starts, SETTINGS, subjects))
        learn = partial(curve, folder=args.out, seed=args.seed)
        for (start, setting, subject), points in zip(work, pool.map(learn, work), strict=True):
            curves[start][setting.title].append(points)
            last = " ".join(f"{point['balanced_accuracy']:.3f}" for point in points)
            print(f"{start:>10} {setting.title:>20} {subject.name:>7} {last}", file=sys.stderr, flush=True)
    config = {"people": args.people, "cast": CAST_SEED, "passes": PASSES, "threads": 1, "workers": args.workers}
    config |= {"base": EMBEDDED_BASE.name, "settings": merged_settings(base_settings(EMBEDDED_BASE))}
    result = {
        "starts": {
            start: {"settings": {title: means(each) for title, each in own.items()}, "curves": own}
            for start, own in curves.items()
        },
        "passport": passport(command_line("convergence", argv), config, args.seed),
    }
    publish(result, markdown(result), "convergence", args)
    if args.write:
        figure(result["starts"]).savefig(args.write / "convergence.png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
