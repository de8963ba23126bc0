"""Means that spare work on the video and on the questions about it, one by one (see `training_means`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from safetensors.torch import load, save_file
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.data import DataLoader

from pvchat.trainers.collator import IGNORED, group_mask
from pvchat.trainers.features import NAME as STATES
from pvchat.trainers.features import FeatureCache

from .cost_setup import QUESTION_TOKENS, config_of
from .counters import count_flops
from .step_pairs import (
    BATCH,
    EPOCHS,
    QUESTIONS,
    VISION_LAYERS,
    Bench,
    Row,
    in_turn,
)

# -- the video --------------------------------------------------------------------------------------------------------


def cached_states(bench: Bench) -> list[Row]:
    start = time.perf_counter()
    bench.tiny.cache("light", bench.tiny.rows)
    filled = (time.perf_counter() - start) / len(bench.tiny.rows)
    ratios = bench.compare(bench.one(cached=False), bench.one())
    run = EPOCHS * ratios["seconds_without"] / (EPOCHS * ratios["seconds_with"] + filled)
    blocks = config_of("full").vision_config.num_hidden_layers
    return [
        Row(
            "encoder states on disk",
            "light; without: read and encoded in the step",
            "yes",
            f"The encoder is frozen, so {EPOCHS} epochs need it once: {run:.2f} times over a run, filling included.",
            ratios,
            bench.full.ratios({"cached": False}, {}),
        ),
        Row(
            "only trained blocks run",
            f"paper: the last {VISION_LAYERS['full']} of {blocks} blocks (tiny: {VISION_LAYERS['tiny']} of 5)",
            "yes",
            "The frozen blocks in front are stored like the whole encoder in `light`.",
            bench.compare(bench.one(profile="paper", cached=False), bench.one(profile="paper")),
            bench.full.ratios({"profile": "paper", "cached": False}, {"profile": "paper"}),
        ),
    ]


def mapped_reading(bench: Bench) -> list[Row]:
    features = bench.tiny.cache("light", [bench.tiny.clip])
    path = next(features.folder.glob(f"{bench.tiny.clip['sha256'][:32]}*"))
    big = FeatureCache(
        features.model, features.processor, bench.folder / "big", features.layers_done, False
    )  # with the states of a clip at full size under the same name
    big.folder.mkdir(parents=True)
    states = bench.full.shapes("light").features().states
    save_file({STATES: torch.zeros(states.shape, dtype=states.dtype)}, big.folder / path.name)
    size = (big.folder / path.name).stat().st_size

    def whole() -> torch.Tensor:
        return torch.stack([load((big.folder / path.name).read_bytes())[STATES]])

    ratios = in_turn(whole, lambda: torch.stack([big.get(bench.tiny.clip["sha256"])]), 5 * bench.repeats)
    return [
        Row(
            "memory-mapped reading",
            "states of a clip at full size into a batch; without: the file is read as a whole first",
            "yes",
            f"`safe_open` maps the file; {size / 1e6:.1f} MB take {1e3 * ratios['seconds_with']:.0f} ms from the page "
            f"cache, so that nothing has to be kept in memory between epochs.",
            ratios,
        )
    ]


def qformer_keys(bench: Bench) -> list[Row]:
    shapes = bench.full.shapes("light")
    model = shapes.model.get_base_model().model
    cross = [layer.crossattention.attention for layer in model.qformer.encoder.layer if layer.crossattention]
    states = shapes.features().states

    def project() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for attention in cross:
                attention.key.base_layer(states)
                attention.value.base_layer(states)

    with shapes.mode:
        projected = count_flops(project)
    total = bench.full.count("flops")
    more = 2 * len(cross) * model.config.qformer_config.hidden_size / model.config.vision_config.hidden_size
    return [
        Row(
            "Q-Former keys and values on disk",
            "light, the frozen part of their projections; counted",
            "no",
            f"They are {100 * projected / total:.1f} % of a step and would take {more:.1f} times the disk, beside the "
            f"states, which LoRA on both still reads (in `paper` their weights change with every step).",
            full={"flops": total / (total - projected)},
        )
    ]


def decode_ahead(bench: Bench) -> list[Row]:
    tiny = bench.tiny
    inner = tiny.model("light").get_base_model().model
    blocks = len(inner.vision_tower.layers)
    folders = iter(range(10_000))

    def empty() -> FeatureCache:
        return FeatureCache(inner, tiny.processor, bench.folder / f"fill-{next(folders)}", blocks, False)

    def one_after_the_other() -> None:
        features = empty()
        features.folder.mkdir(parents=True)
        for start in range(0, len(tiny.rows), 8):
            paths = [row["path"] for row in tiny.rows[start : start + 8]]
            pixels = tiny.processor.video_processor(videos=paths, return_tensors="pt")["pixel_values_videos"]
            with torch.no_grad():
                for number, state in enumerate(inner.encode_video(pixels)):
                    save_file({STATES: state}, features.folder / f"{start + number}.safetensors")

    side = bench.one(cached=False)
    trainer = side.trainer
    some = [row | {"qa": tiny.clip["qa"]} for row in tiny.rows[:4]]

    def epoch(workers: int) -> None:
        for batch in DataLoader(some, collate_fn=trainer.data_collator, num_workers=workers):
            trainer.training_step(trainer.model, batch, batch["labels"].ne(IGNORED).sum())
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

    filling = in_turn(one_after_the_other, lambda: empty().fill(tiny.rows), bench.repeats)
    return [
        Row(
            "decode ahead, filling the cache",
            f"{len(tiny.rows)} clips in batches of 8",
            "yes",
            "The files of the next batch are read in threads while this one is encoded; processor time stays.",
            filling,
        ),
        Row(
            "decode ahead, encoding in every step",
            f"{len(some)} clips, a loader process of its own",
            "no",
            "Training starts from the cache and decodes nothing; without one, set `dataloader_num_workers`.",
            in_turn(lambda: epoch(0), lambda: epoch(1), bench.repeats),
        ),
    ]


# -- the questions ----------------------------------------------------------------------------------------------------


def grouped(bench: Bench) -> list[Row]:
    return [
        Row(
            "questions of a clip in one row",
            f"{QUESTIONS} questions; without: a row each, with the prefix again",
            "yes",
            "Q-Former and prefix run once; the losses are the same.",
            bench.compare(bench.one(grouped=False), bench.one()),
            bench.full.ratios({"grouped": False}, {}),
        )
    ]


def block_mask(bench: Bench) -> list[Row]:
    text = config_of("full").text_config
    prefix = len(bench.full.processor.encode_prefix())
    numbers = torch.cat([torch.zeros(prefix), torch.arange(1, QUESTIONS + 1).repeat_interleave(QUESTION_TOKENS)])
    mask = group_mask(numbers.long()[None])
    length = mask.shape[-1]
    hidden = 1.0 - mask.float().mean().item()
    q = torch.randn(1, 4, length, text.head_dim, requires_grad=True)

    def attend(**how) -> None:
        F.scaled_dot_product_attention(q, q, q, **how).sum().backward()
        q.grad = None

    shapes = bench.full.shapes("light")
    with shapes.mode:
        heads = torch.empty(1, text.num_attention_heads, length, text.head_dim, requires_grad=True)
        attention = text.num_hidden_layers * count_flops(
            lambda: F.scaled_dot_product_attention(heads, heads, heads).sum().backward()
        )
    total = bench.full.count("flops")
    try:
        flex_attention(q, q, q)
        flex = "it runs here, and was not compared"
    except NotImplementedError as error:
        flex = str(error).split(".")[0]
    return [
        Row(
            "plain causal attention for the mask",
            f"attention alone, 4 heads of {text.head_dim}, {length} tokens, forward and backward; not the same result",
            "no",
            "It only bounds what the dense mask costs; questions would see each other.",
            in_turn(lambda: attend(attn_mask=mask), lambda: attend(is_causal=True), bench.repeats),
        ),
        Row(
            "FlexAttention's block mask",
            "counted: all hidden pairs left out",
            "not measured",
            f"It skips at most the {100 * hidden:.0f} % of pairs that are hidden, and attention is "
            f"{100 * attention / total:.1f} % of a step; on a processor: {flex}.",
            full={"flops": total / (total - hidden * attention)},
        ),
    ]


def padding_share(lengths: np.ndarray, order: Sequence[int], batch: int = BATCH) -> float:
    """Share of a batch's places that hold padding, over all batches of an epoch in this order."""
    batches = [lengths[order[start : start + batch]] for start in range(0, len(order), batch)]
    return 1.0 - lengths.sum() / sum(int(own.max()) * len(own) for own in batches)


def buckets(bench: Bench) -> list[Row]:
    lengths = bench.lengths
    rng = np.random.default_rng(bench.seed)
    random = float(np.mean([padding_share(lengths, rng.permutation(len(lengths))) for _ in range(200)]))
    sorted_ = padding_share(lengths, np.argsort(lengths))
    rows = bench.tiny.rows[: 2 * BATCH]  # one long, so that a fifth is padding, as on average
    halves = [rows[:BATCH], rows[BATCH:]]
    together = bench.tiny.side([[half] for half in halves])
    alone = bench.tiny.side([[[row] for row in half] for half in halves])
    count = bench.full.count
    padded, long, short = (count("flops", some) for some in (halves[0], rows[:1], rows[1:2]))
    full = {
        "flops": (padded + BATCH * short) / (long + (2 * BATCH - 1) * short),
        "bytes": count("bytes", halves[0]) / count("bytes", rows[:1]),
    }
    return [
        Row(
            "clips of one length in a batch",
            f"batches of {BATCH}, {len(lengths)} clips with the lengths of {bench.lengths_of}; tokens counted",
            "no",
            f"Padding falls from {100 * random:.0f} % to {100 * sorted_:.0f} %, but the long clips are those that are "
            f"described, all of the subject: they would share steps that have no other side.",
            full={"flops": (1 - sorted_) / (1 - random)},
        ),
        Row(
            "one clip at a time, accumulated",
            f"{BATCH} clips an update, each a batch of its own; without: padded to the longest of {BATCH}",
            "setting",
            "The same loss on answers without padding, with `per_device_train_batch_size=1` and "
            "`gradient_accumulation_steps=4`. Not the default: the losses on routers are then those of each clip.",
            in_turn(together.run, alone.run, 1),
            full,
        ),
    ]
