"""How much faster is a training step when the questions of a video share one pass over it?

    python -m benchmarks.grouped_training
    python -m benchmarks.grouped_training --videos 2 --questions 18 --json

Both ways take one step (forward, backward, optimiser) on the same questions, and give the same gradients
(`tests/test_grouped.py`). `grouped` reads a video once and its questions behind it, each blind to the others;
`ungrouped` makes a row per question and reads the video in each, as the reference does. They take turns, and the ratio
is that of the medians. `cached` starts from stored encoder states, `encoder` runs the video encoder in the step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pvchat.dataset_builder.cartoon import Scene, cast, render_video
from pvchat.modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.modeling_pvchat.processing_pvchat import PVChatProcessor
from pvchat.passport import passport
from pvchat.session import EMBEDDED_BASE
from pvchat.trainers.adapter import AdapterSettings, build_subject_model
from pvchat.trainers.config import Stage2Config
from pvchat.trainers.features import FeatureCache
from pvchat.trainers.video_stage import VideoStageTrainer

NAME = "<Nz>"
QUESTIONS = (
    ("existence", "Is <Nz> in this video?", "Yes, <Nz> is in this video."),
    ("appearance", "What is <Nz> wearing?", "<Nz> is wearing a red shirt."),
    ("action", "What is <Nz> doing?", "<Nz> is waving."),
    ("location", "Where is <Nz>?", "<Nz> is in a park."),
)


def make_rows(folder: Path, videos: int, questions: int, seed: int) -> list[dict[str, Any]]:
    """Training rows of drawn clips, `questions` to each."""
    rows = []
    for index, member in enumerate(cast(videos, seed)):
        path = folder / f"{index}.mp4"
        render_video(path, member.identity, Scene.random(np.random.default_rng([seed, index])))
        qa = [QUESTIONS[i % len(QUESTIONS)] for i in range(questions)]
        rows.append(
            {
                "video_id": str(index),
                "subject": NAME,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "path": str(path),
                "qa": [{"category": c, "question": q, "answer": a, "subject_present": True} for c, q, a in qa],
            }
        )
    return rows


def make_trainer(base: str, rows: list[dict[str, Any]], folder: Path, cached: bool, grouped: bool, seed: int):
    """A stage-2 trainer of the light profile, ready to step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = PVChatForConditionalGeneration.from_pretrained(base, dtype=dtype).to(device)
    processor = PVChatProcessor.from_pretrained(base)
    model = build_subject_model(model, AdapterSettings(), seed)
    inner = model.get_base_model().model
    features = FeatureCache(inner, processor, folder / "features", len(inner.vision_tower.layers), False)
    args = Stage2Config(str(folder / "out"), disable_tqdm=True, seed=seed)
    trainer = VideoStageTrainer(
        model, args, rows, processor, "light", features=features.fill(rows) if cached else None, grouped=grouped
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


def step_seconds(trainer, rows: list[dict[str, Any]]) -> float:
    """Wall seconds of one step on all rows, without reading files."""
    batch = trainer.data_collator(rows)
    count = (batch["labels"] != -100).sum()
    start = time.perf_counter()
    trainer.training_step(trainer.model, batch, count.to(trainer.args.device))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(base: str, rows: list[dict[str, Any]], folder: Path, cached: bool, args: argparse.Namespace) -> dict:
    """Median seconds of a grouped and an ungrouped step, taken in turn, and their ratio."""
    names = ("grouped", "ungrouped")
    trainers = {name: make_trainer(base, rows, folder, cached, name == "grouped", args.seed) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for repeat in range(args.repeats + 1):
        for name, trainer in trainers.items():
            taken = step_seconds(trainer, rows)
            if repeat:  # the first of each warms up
                seconds[name].append(taken)
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    return medians | {"ratio": medians["ungrouped_seconds"] / medians["grouped_seconds"]}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grouped_training", description=__doc__.split("\n")[0])
    parser.add_argument("--base", default=str(EMBEDDED_BASE), help="checkpoint (default: the embedded pvchat-cartoon)")
    parser.add_argument("--videos", type=int, default=2, help="videos in a step (default: 2)")
    parser.add_argument("--questions", type=int, default=18, help="questions of each video (default: 18)")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each way (default: 5)")
    parser.add_argument("--threads", type=int, help="processor threads (default: PyTorch's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(folder, args.videos, args.questions, args.seed)
        result: dict[str, Any] = {
            "cached": measure(args.base, rows, folder, True, args),
            "encoder": measure(args.base, rows, folder, False, args),
        }
    for what, values in result.items():
        print(
            f"{what:8} grouped {values['grouped_seconds']:.3f} s, ungrouped {values['ungrouped_seconds']:.3f} s: "
            f"{values['ratio']:.1f} times faster",
            file=sys.stderr if args.json else sys.stdout,
        )
    if args.json:
        command = ["python", "-m", "benchmarks.grouped_training", *(sys.argv[1:] if argv is None else argv)]
        config = {name: getattr(args, name) for name in ("base", "videos", "questions", "repeats")}
        config["threads"] = torch.get_num_threads()
        print(json.dumps(result | {"passport": passport(command, config, args.seed)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
