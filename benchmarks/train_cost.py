"""What does a subject cost to train: the reference's schedule against ours, side by side?

    python -m benchmarks.train_cost
    python -m benchmarks.train_cost --write docs/results --json
    python -m benchmarks.train_cost --size full --count-only

Both train the same values (what the authors' script really trains) of the same model on the same clips and questions
for the same epochs: one on first frames, seven on clips. The reference takes two questions a step, and encodes the
clip of each again; ours takes clips with all of their questions, and starts from stored encoder states. The two take
turns, step by step. Measured is one epoch of each stage on five clips; the sums repeat it as often as the schedule
does (an epoch costs what the one before cost). `--size full` is the published system with random weights on a GPU.
`--count-only` counts its FLOPs from shapes, anywhere.

Generous to the reference: its encoder attention is the fused one here, its clips are small files.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pvchat.cli import calm_libraries
from pvchat.passport import passport, passport_line
from pvchat.trainers.config import Stage1Config, Stage2Config
from pvchat.trainers.features import FeatureCache
from pvchat.trainers.image_stage import ImageStageTrainer
from pvchat.trainers.video_stage import VideoStageTrainer

from .command import command_line, make_parser, publish
from .cost_setup import EPOCHS, config_of, make_model, make_processor, make_rows, rows_of_stage
from .counters import LiveBytes, clock, count_flops, matmul_rate, operator_shares, optimizer_tensors, total_bytes
from .shapes_only import ShapesOnly
from .step_pairs import set_checkpointing

CLIPS = 81  # of the paper's training split, with 1,455 questions
MEASURED_CLIPS = 5  # with 90
SCHEDULES = ("reference", "ours")
NOT_COUNTED = (
    "What works on one element at a time (norms, activations, dropout, rotary positions, the optimiser) is not."
)


class ReferenceLoss:
    """The authors' step: logits of every token, the mean over the answer tokens of the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {k: v for k, v in inputs.items() if k not in ("loss_weights", "logits_to_keep")}
        outputs = model(**inputs, use_cache=False)
        terms = self._sparsity_terms(outputs.router_logits, inputs["labels"].ne(-100).any(dim=1))
        self._note(outputs.loss, terms)
        return outputs.loss + terms.loss


class ReferenceImageStage(ReferenceLoss, ImageStageTrainer):
    pass


class ReferenceVideoStage(ReferenceLoss, VideoStageTrainer):
    pass


TRAINERS = {
    1: (Stage1Config, {"reference": ReferenceImageStage, "ours": ImageStageTrainer}),
    2: (Stage2Config, {"reference": ReferenceVideoStage, "ours": VideoStageTrainer}),
}


# -- the two schedules ------------------------------------------------------------------------------------------------


def epoch_batches(name: str, rows: list[dict], batch_size: int, rng: np.random.Generator) -> list[list[dict]]:
    """The batches of an epoch: of the reference two questions of any clips, of ours `batch_size` clips."""
    if name == "reference":
        rows, batch_size = [row | {"qa": [question]} for row in rows for question in row["qa"]], 2
    order = rng.permutation(len(rows))
    return [[rows[i] for i in order[start : start + batch_size]] for start in range(0, len(rows), batch_size)]


def merged_steps(batches: dict[str, list]) -> Iterator[tuple[str, list[dict]]]:
    """The steps of both schedules, merged so that both are as far at any time."""
    steps = [
        ((i + 1) / len(own), name, batch) for name, own in batches.items() for i, batch in enumerate(own)
    ]  # fmt: skip
    for _, name, batch in sorted(steps, key=lambda step: step[:2]):
        yield name, batch


def make_trainers(build, stage: int, rows, processor, features, folder: Path, size: str, **settings) -> dict[str, Any]:
    """The trainers of both schedules. build: called with a trainer's class and all arguments but the model."""
    config_class, classes = TRAINERS[stage]
    trainers = {}
    for name, trainer_class in classes.items():
        ours = name == "ours"
        args = config_class(
            str(folder / name),
            disable_tqdm=True,
            balance_existence=False,
            gradient_checkpointing=ours and size == "full",  # the reference has none in its language model
            **settings,
        )
        options = {"features": features if ours else None, "grouped": ours}
        trainers[name] = build(trainer_class, args, rows, processor, "paper", **options)
        trainers[name].current_gradient_accumulation_steps = 1
    return trainers


def autocast(trainer):
    """What `Trainer.train` puts around the model, and a step taken alone lacks."""
    return torch.autocast(trainer.args.device.type, torch.bfloat16, enabled=trainer.args.bf16)


def backward_pass(trainer, batch: dict[str, Any]) -> None:
    trainer.model.train()
    with autocast(trainer):
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()


def take_step(trainer, rows: list[dict[str, Any]]) -> dict[str, float]:
    """One step as in training; seconds of its parts."""
    set_checkpointing(trainer, trainer.args.gradient_checkpointing)
    times = [clock()]
    batch = trainer.data_collator(rows)
    times.append(clock())
    with autocast(trainer):
        trainer.training_step(trainer.model, batch, (batch["labels"] != -100).sum().to(trainer.args.device))
    times.append(clock())
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    times.append(clock())
    return dict(zip(("read", "forward_backward", "update"), np.diff(times).tolist(), strict=True))


# -- counts -----------------------------------------------------------------------------------------------------------


def count_epoch(trainer, batches: list[list[dict]], checkpointing: bool, shapes: ShapesOnly | None = None) -> int:
    """FLOPs of the forward and backward passes of these batches; batches of one shape are counted once."""
    set_checkpointing(trainer, checkpointing)
    total, seen = 0, {}
    for rows in batches:
        shape = tuple(sorted(len(row["qa"]) for row in rows))  # all questions are equally long
        if shape not in seen:
            batch = trainer.data_collator(rows)
            batch = trainer._prepare_inputs(batch) if shapes is None else shapes.batch(batch)
            with shapes.mode if shapes else nullcontext():
                seen[shape] = count_flops(lambda: backward_pass(trainer, batch))  # noqa: B023 (called at once)
            trainer.model.zero_grad()
        total += seen[shape]
    return total


def count_encoding(trainer, rows: list[dict], shapes: ShapesOnly | None = None) -> int:
    """FLOPs of encoding every clip once. trainer: one without a cache, whose batches have pixels."""
    pixels = trainer.data_collator([rows[0] | {"qa": rows[0]["qa"][:1]}])["pixel_values_videos"]
    inner = trainer.model.get_base_model().model
    pixels = pixels.to(trainer.args.device, inner.dtype)
    pixels = pixels if shapes is None else shapes.mode.from_tensor(pixels)
    with torch.no_grad(), shapes.mode if shapes else nullcontext():
        return len(rows) * count_flops(lambda: inner.encode_video(pixels))


def count_stage(trainers: dict[str, Any], rows, batch_size: int, shapes: ShapesOnly | None = None) -> dict[str, int]:
    """FLOPs of one epoch of each schedule, and of encoding all clips once."""
    batches = {name: epoch_batches(name, rows, batch_size, np.random.default_rng(0)) for name in SCHEDULES}
    recomputes = {name: trainers[name].args.gradient_checkpointing for name in SCHEDULES}
    counts = {name: count_epoch(trainers[name], batches[name], recomputes[name], shapes) for name in SCHEDULES}
    if recomputes["ours"]:
        counts["ours_keeping_activations"] = count_epoch(trainers["ours"], batches["ours"], False, shapes)
    return counts | {"encode": count_encoding(trainers["reference"], rows, shapes)}


def step_peak(trainer, rows, other) -> int:
    """Most bytes during a step, without what the other schedule's optimiser holds.

    On a GPU as the allocator counts them, elsewhere the bytes of all tensors.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        take_step(trainer, rows)
        return torch.cuda.max_memory_allocated() - total_bytes(optimizer_tensors(other.optimizer))
    known = [*trainer.model.parameters(), *trainer.model.buffers(), *optimizer_tensors(trainer.optimizer)]
    with LiveBytes(known) as memory:
        take_step(trainer, rows)
    return memory.peak


# -- runs -------------------------------------------------------------------------------------------------------------


def count_full(folder: Path, batch_size: int) -> dict[str, Any]:
    """FLOPs of both schedules at full size, from shapes."""
    shapes = ShapesOnly("full", "reference")
    processor = make_processor(config_of("full"))
    rows = make_rows(folder)
    stages = {}
    for stage in EPOCHS:
        own = rows_of_stage(rows, stage)
        trainers = make_trainers(
            shapes.trainer, stage, own, processor, shapes.features(), folder, "full", use_cpu=True, bf16=True
        )
        stages[stage] = {"flops": count_stage(trainers, own, batch_size, shapes)}
    return {"questions": count_questions(rows), "stages": stages}


def measure(size: str, folder: Path, batch_size: int, seed: int) -> dict[str, Any]:
    """One epoch of each stage by both schedules, step by step in turn."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if size == "full" else torch.float32
    with torch.device(device):
        model = make_model(size, "reference", seed=seed, dtype=dtype)
    processor = make_processor(config_of(size))
    rows = make_rows(folder, seed=seed)
    inner = model.get_base_model().model
    rng = np.random.default_rng(seed)
    others = dict(zip(SCHEDULES, reversed(SCHEDULES), strict=True))
    result: dict[str, Any] = {"questions": count_questions(rows), "stages": {}}
    for stage in EPOCHS:
        own = rows_of_stage(rows, stage)
        features = FeatureCache(inner, processor, folder / "features", len(inner.vision_tower.layers), stage == 1)
        start = clock()
        features.fill(own)
        entry: dict[str, Any] = {"encode_seconds": clock() - start}
        trainers = make_trainers(partial(build, model), stage, own, processor, features, folder, size, seed=seed)
        entry["flops"] = count_stage(trainers, own, batch_size)
        first = {name: epoch_batches(name, own, batch_size, np.random.default_rng(seed))[0] for name in SCHEDULES}
        for name in SCHEDULES:
            take_step(trainers[name], first[name])  # makes the optimiser's states
        entry["peak_bytes"] = {n: step_peak(trainers[n], first[n], trainers[others[n]]) for n in SCHEDULES}
        entry["operators"] = {n: operator_shares(partial(take_step, trainers[n], first[n])) for n in SCHEDULES}
        seconds = {name: {"read": 0.0, "forward_backward": 0.0, "update": 0.0} for name in SCHEDULES}
        for name, batch in merged_steps({n: epoch_batches(n, own, batch_size, rng) for n in SCHEDULES}):
            for part, taken in take_step(trainers[name], batch).items():
                seconds[name][part] += taken
        result["stages"][stage] = entry | {"seconds": seconds}
    result["matmul_flops_per_second"] = matmul_rate(device, dtype)
    return result


def count_questions(rows) -> dict[int, int]:
    return {stage: sum(len(row["qa"]) for row in rows_of_stage(rows, stage)) for stage in EPOCHS}


def build(model, trainer_class, *args, **options):
    """A trainer that is ready to step."""
    trainer = trainer_class(model, *args, **options)
    trainer.create_optimizer()
    return trainer


def totals(measured: dict[str, Any], clips: int) -> dict[str, dict[str, float]]:
    """Each schedule over all epochs, of as many clips: FLOPs, seconds, and how many times less than the reference.

    `ours_without_cache` encodes every clip in every epoch; `ours_keeping_activations` recomputes nothing.
    """
    variants = {"reference": ("reference", 0), "ours": ("ours", 1), "ours_without_cache": ("ours", None)}
    if "ours_keeping_activations" in measured["stages"][1]["flops"]:
        variants["ours_keeping_activations"] = ("ours_keeping_activations", 1)
    scale = clips / MEASURED_CLIPS
    found: dict[str, dict[str, float]] = {}
    for variant, (name, encodings) in variants.items():
        row = {"flops": 0.0, "seconds": 0.0}
        for stage, entry in measured["stages"].items():
            often = EPOCHS[stage] if encodings is None else encodings
            row["flops"] += scale * (EPOCHS[stage] * entry["flops"][name] + often * entry["flops"]["encode"])
            if name in entry.get("seconds", {}):
                steps = EPOCHS[stage] * sum(entry["seconds"][name].values())
                row["seconds"] += scale * (steps + often * entry["encode_seconds"])
        row["flops_ratio"] = (found.get("reference") or row)["flops"] / row["flops"]
        if row["seconds"]:
            row["wall_ratio"] = (found.get("reference") or row)["seconds"] / row["seconds"]
        else:
            del row["seconds"]
        found[variant] = row
    return found


def summary(measured: dict[str, Any], size: str) -> dict[str, Any]:
    """What is printed last: the ratios first, then each schedule."""
    clips = CLIPS if size == "full" else MEASURED_CLIPS
    found = totals(measured, clips)
    questions = sum(EPOCHS[s] * n * clips / MEASURED_CLIPS for s, n in measured["questions"].items())
    result: dict[str, Any] = {f"{kind}_ratio": found["ours"].get(f"{kind}_ratio") for kind in ("flops", "wall")}
    for name, row in found.items():
        if "seconds" in row:
            row["samples_per_second"] = questions / row["seconds"]
            row["flops_per_second"] = row["flops"] / row["seconds"]
            row["of_matmul_rate"] = row["flops_per_second"] / measured["matmul_flops_per_second"]
        if name in SCHEDULES and "peak_bytes" in measured["stages"][2]:
            row["peak_bytes"] = max(entry["peak_bytes"][name] for entry in measured["stages"].values())
    reference = measured["stages"][2]["flops"]
    per_question = reference["encode"] / MEASURED_CLIPS * measured["questions"][2]
    result["vision_share_of_reference"] = per_question / reference["reference"]
    extrapolated = [f"1 epoch of stage 2 to {EPOCHS[2]}"] + [f"{MEASURED_CLIPS} clips to {clips}"] * (size == "full")
    return result | {
        "size": size,
        "clips": clips,
        "extrapolated": extrapolated,
        "schedules": found,
        "measured": measured,
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as the page that is committed."""
    lines = [f"# Cost of training a subject, `{result['size']}`", "", passport_line(result["passport"]), ""]
    share = 100 * result["vision_share_of_reference"]
    lines.append(
        f"{EPOCHS[1]} epoch of first frames and {EPOCHS[2]} of clips, {result['clips']} clips with 18 questions each "
        f"on average. Encoding is {share:.0f} % of the reference's FLOPs in stage 2."
    )
    if result["extrapolated"]:
        lines.append(f"Extrapolated from measured steps: {', '.join(result['extrapolated'])}.")
    timed = "wall_ratio" in result["schedules"]["ours"]
    lines += [
        "",
        "| schedule | PFLOP | times fewer |" + (_TIMED if timed else ""),
        "|---|---|---|" + "---|" * 5 * timed,
    ]
    for name, row in result["schedules"].items():
        line = f"| {TITLES[name]} | {row['flops'] / 1e15:.4g} | {row['flops_ratio']:.2f} |"
        if "seconds" in row:
            peak = f"{row['peak_bytes'] / 1e9:.3f}" if "peak_bytes" in row else ""
            line += (
                f" {row['seconds']:.1f} | {row['wall_ratio']:.2f} | {row['samples_per_second']:.1f} | {peak} "
                f"| {row['flops_per_second'] / 1e9:.1f} ({100 * row['of_matmul_rate']:.0f} %) |"
            )
        elif timed:  # counted only
            line += " |" * 5
        lines.append(line)
    if timed:
        lines += ["", "Where the time of the measured steps goes:", ""]
        lines += ["| | read | forward, backward | update | matrix products | attention | the rest |", "|---" * 7 + "|"]
        for stage, entry in result["measured"]["stages"].items():
            for name in SCHEDULES:
                seconds, shares = entry["seconds"][name], entry["operators"][name]
                total = sum(seconds.values())
                cells = [100 * value / total for value in seconds.values()] + [100 * v for v in shares.values()]
                lines.append(f"| stage {stage}, {name} | " + " | ".join(f"{cell:.0f} %" for cell in cells) + " |")
        rate = result["measured"]["matmul_flops_per_second"] / 1e9
        lines += ["", f"The machine multiplies large matrices at {rate:.0f} GFLOP/s with these threads. "]
        lines[-1] += "Matrix products, attention and the rest are shares of one profiled step, reading included."
    lines += ["", "FLOPs are those of matrix products, convolutions and attention. " + NOT_COUNTED]
    return "\n".join(lines) + "\n"


_TIMED = " seconds | times faster | questions/s | peak GB | GFLOP/s |"
TITLES = {
    "reference": "reference: a question a sample, encoded each time",
    "ours": "ours: all questions of a clip at once, encoder states stored",
    "ours_without_cache": "ours, encoding each clip in every epoch",
    "ours_keeping_activations": "ours without recomputing activations",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("train_cost", __doc__, "train_cost.{json,md}")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny", help="default: tiny")
    parser.add_argument("--count-only", action="store_true", help="of `full`: FLOPs from shapes, no GPU, no times")
    parser.add_argument("--batch", type=int, default=1, help="clips of a step of ours (default: 1, nothing is padded)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="processor threads (default: PyTorch's)")
    args = parser.parse_args(argv)
    calm_libraries()
    if args.size == "full" and not args.count_only and not torch.cuda.is_available():
        print(
            "benchmarks.train_cost: the full size needs a GPU, and there is none here; --count-only counts its FLOPs.",
            file=sys.stderr,
        )
        return 1
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        if args.count_only:
            measured = count_full(Path(name), args.batch)
        else:
            measured = measure(args.size, Path(name), args.batch, args.seed)
    config = {"batch": args.batch, "epochs": EPOCHS, "threads": torch.get_num_threads()}
    result = summary(measured, args.size) | {"passport": passport(command_line("train_cost", argv), config, args.seed)}
    publish(result, markdown(result), "train_cost_full" if args.size == "full" else "train_cost", args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
