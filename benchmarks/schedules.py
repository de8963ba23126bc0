"""How many questions share a step: what does the fast schedule cost in accuracy?

    python -m benchmarks.schedules --out runs/ablate --workers 2 --write docs/results
    python -m benchmarks.schedules --subjects 2 --seeds 1

Cast members are learned by the schedule of the embedded base and by the reference's steps, two questions of two clips.
Every clip brings as many questions in each stage by either; the video encoder is frozen, so both start from stored
states and only the schedule differs. The table is that of `pvchat ablate`: the full system is the fast schedule, and
the last column tests the other against it on the same questions. In the folder of an ablation its runs are taken over.
`benchmarks.convergence` draws the curves, on other people.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pvchat.cli import calm_libraries
from pvchat.errors import PVChatError
from pvchat.evaluation.ablation.study import Study, run_study
from pvchat.evaluation.ablation.tables import markdown
from pvchat.evaluation.ablation.variants import FULL, Row, Table, Variant
from pvchat.session import EMBEDDED_BASE
from pvchat.trainers.config import GROUPS, Stage2Config
from pvchat.trainers.run import base_settings

from .command import command_line, make_parser

PASSES = {"1": 6, "2": 18}  # questions that a clip brings in each stage, by any schedule
# Times the rates of the embedded base. A step has a twelfth of the questions, and Adam's rate goes with the root of
# the batch size (Malladi et al., 2022). benchmarks.convergence looks at other rates.
REFERENCE_RATE = 0.3


def schedule(questions: int, clips: int, rate: float) -> dict[str, dict[str, Any]]:
    """Training settings of the embedded base with another schedule.

    Args:
        questions: of a clip in a step, at most as many as `PASSES` has. clips: in a step.
        rate: factor on all learning rates.
    """
    own = base_settings(EMBEDDED_BASE)["train"]
    rates = {name: f"{name}_learning_rate" for name in GROUPS}
    train = {field: rate * own.get(field, getattr(Stage2Config, field)) for field in rates.values()}
    train |= {"qa_per_video": questions, "per_device_train_batch_size": clips}
    settings: dict[str, dict[str, Any]] = {"train": train}
    for stage, count in PASSES.items():
        settings[stage] = {"num_train_epochs": max(1, count // questions)}
        if questions > count:
            settings[stage]["qa_per_video"] = count
    return settings


def table(rate: float = REFERENCE_RATE) -> Table:
    own = base_settings(EMBEDDED_BASE)["train"]
    fast = f"{own['qa_per_video']} questions of each of {Stage2Config.per_device_train_batch_size} clips"
    return Table(
        "schedule",
        "Questions that share a step",
        f"Every clip brings {PASSES['1']} questions in the image stage and {PASSES['2']} in the video stage. The "
        f"learning rates of the first row are {rate:g} times those of the second.",
        (
            Row("2 questions of 2 clips (reference)", Variant("schedule-reference", settings=schedule(1, 2, rate))),
            Row(fast, FULL),
        ),
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("schedules", __doc__, "ablation_schedule.{json,md}")
    parser.add_argument("--subjects", type=int, default=8, help="cast members (default: 8)")
    parser.add_argument("--seeds", type=int, default=3, help="of training (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="picks the cast, and the first seed (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"), help="work folder (default: runs/ablate)")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each (default: 1)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    calm_libraries()
    command = command_line("schedules", argv)

    def progress(what: str, done: int, total: int, last: str) -> None:
        print(f"{what} {done}/{total}  {last}", file=sys.stderr, flush=True)

    try:
        study = Study(
            (table(),), args.out, args.subjects, args.seeds, seed=args.seed, workers=args.workers, threads=args.threads
        )
        found = run_study(study, command=command, write=args.write, progress=progress)["schedule"]
    except PVChatError as error:
        print(f"benchmarks.schedules: {error}", file=sys.stderr)
        return 1
    print(markdown(found))
    if args.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
