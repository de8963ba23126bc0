"""Pretrains `pvchat-cartoon`, the small base model that the package carries.

    python examples/pretrain_cartoon.py --out pvchat/assets/pvchat-cartoon          # about 80 minutes on two cores
    python examples/pretrain_cartoon.py --out /tmp/try --frame-steps 20 --alignment-steps 20

Two stages on people and scenes rendered on the fly; one identity in eight is held out and never rendered:

1. frames: the video encoder learns the attributes of single pictures (one linear head per attribute).
2. alignment: encoder, Q-Former and language model learn to answer general questions about clips of 8 frames. The
   questions of a clip share its video prefix (block mask). Attribute heads on the projected video tokens help for a
   while and are thrown away.

The Q-Former is plain (no routers): they are inserted when a subject is learned, as with the full-size base. `<sks>` is
taught as a blank name that means whoever is in the video; nobody's name is ever learned. The run can be interrupted:
it continues from `state.pt` beside the output.
"""

import argparse
import json
import math
import os
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from pvchat.dataset_builder.cartoon import (
    ATTRIBUTE_VALUES,
    Identity,
    Scene,
    attributes,
    general_questions,
    render_clip,
    render_matte,
    vocabulary_corpus,
)
from pvchat.dataset_builder.questions import load_bank
from pvchat.modeling_pvchat.configuration_pvchat import PVChatConfig
from pvchat.modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.modeling_pvchat.processing_pvchat import SUBJECT_TOKEN, PVChatProcessor
from pvchat.modeling_pvchat.video_processing_pvchat import PVChatVideoProcessor
from pvchat.session import EMBEDDED_BASE
from pvchat.trainers.collator import group_mask

IMAGE_SIZE, NUM_FRAMES, TUBELET = 64, 8, 2
VOCABULARY = 1280
FRAME_ATTRIBUTES = [name for name in ATTRIBUTE_VALUES if name != "action"]
BLANK_NAME_SHARE = 0.3
STRANGE_PLACE_SHARE = 0.35
QUESTION_WEIGHT = 0.3  # of the loss of a question's token; an answer's has 1
FIRST_TOKEN_WEIGHT = 5.0  # of the loss: the first token of an answer decides it, the rest mostly follows
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<video>", SUBJECT_TOKEN, "<Video>", "</Video>"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text can be encoded) on the cartoon world's text and the question bank."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*vocabulary_corpus(), *bank_corpus()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def bank_corpus() -> list[str]:
    """Every text of the question bank, repeated so that its words become whole tokens."""
    bank = load_bank()
    groups = [*bank.questions.values(), bank.yes, bank.no, *bank.refusals.values()]
    return [text.format(name=SUBJECT_TOKEN) for group in groups for text in group for _ in range(40)]


def build_config(tokenizer: PreTrainedTokenizerFast) -> PVChatConfig:
    return PVChatConfig(
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "num_frames": NUM_FRAMES,
            "tubelet_size": TUBELET,
            "layer_scale_init_value": 0.3,
            "layer_norm_eps": 1e-6,
        },
        qformer_config={
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 384,
            "has_text_branch": False,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": 1e-6,
            "routing": "none",
            "routing_start_layer": 3,
        },
        text_config={
            "model_type": "mistral",
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2048,
            "sliding_window": None,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        num_query_tokens=8,
        num_extra_query_tokens=8,
        num_subject_tokens=16,
        tile_grid=None,
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        subject_token_id=tokenizer.convert_tokens_to_ids(SUBJECT_TOKEN),
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, config: PVChatConfig) -> PVChatProcessor:
    video_processor = PVChatVideoProcessor(size=IMAGE_SIZE, num_frames=NUM_FRAMES, tile_grid=None, antialias=True)
    return PVChatProcessor(
        video_processor=video_processor,
        tokenizer=tokenizer,
        num_tiles=config.num_tiles,
        tokens_per_tile=config.tokens_per_tile,
    )


# Data: batch number -> batch, so that a run can be continued and repeated exactly


def draw_person(rng: np.random.Generator, held_out: bool) -> Identity:
    while True:
        identity = Identity.random(rng)
        if identity.is_held_out == held_out:
            return identity


def attribute_targets(identity: Identity, scene: Scene, known_place: bool) -> list[int]:
    """Class of every attribute; -100 for a place that was painted over."""
    truth = attributes(identity, scene)
    targets = {name: values.index(truth[name]) for name, values in ATTRIBUTE_VALUES.items()}
    return list((targets if known_place else {**targets, "place": -100}).values())


def render_augmented(
    identity: Identity, scene: Scene, num_frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """A clip as a camera might have taken it, (T, H, W, 3) uint8, and whether its place is one of the world's.

    Some clips get a background that the world does not have; all get their own exposure, tint, noise and sharpness.
    """
    clip = render_clip(identity, scene, num_frames=num_frames, size=IMAGE_SIZE).astype(np.float32)
    known_place = rng.random() >= STRANGE_PLACE_SHARE
    if not known_place:
        times = np.linspace(0, 1, num_frames) if num_frames > 1 else [0.0]
        matte = np.stack([render_matte(identity, scene, t, IMAGE_SIZE) for t in times])[..., None]
        clip = np.where(matte, clip, strange_place(rng))
    if rng.random() < 0.5:
        clip = clip[:, :, ::-1]
    if rng.random() < 0.3:  # soft focus
        blurred = (clip + np.roll(clip, 1, 1) + np.roll(clip, 1, 2) + np.roll(clip, (1, 1), (1, 2))) / 4
        clip = blurred
    gain = rng.uniform(0.88, 1.06) * rng.uniform(0.94, 1.06, 3)
    clip = (clip - 128) * rng.uniform(0.88, 1.06) + 128
    clip = clip * gain + rng.uniform(-8, 8) + rng.normal(0, rng.uniform(0, 5), clip.shape)
    return clip.clip(0, 255).astype(np.uint8), known_place


def strange_place(rng: np.random.Generator) -> np.ndarray:
    """A background of random colours: a coarse patchwork, smooth or with hard edges, (H, W, 3) float32."""
    cells = int(rng.choice([1, 2, 4, 8]))
    colors = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
    method = Image.Resampling.NEAREST if rng.random() < 0.5 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(colors).resize((IMAGE_SIZE, IMAGE_SIZE), method), np.float32)


def askable_questions(identity: Identity, scene: Scene, rng, count: int, known_place: bool) -> list:
    """General questions about the clip; none about the place when it was painted over."""
    items = []
    while len(items) < count:
        for item in general_questions(identity, scene, rng, count):
            if known_place or (item.kind != "place" and "place" not in item.claim):
                items.append(item)
    return items[:count]


class FrameBatches(IterableDataset):
    """(frames (B, T=tubelet, H, W, 3) uint8, attribute classes (B, A)) of people drawn from one split."""

    def __init__(self, seed: int, size: int, start: int, stop: int, rank: int = 0, held_out: bool = False):
        self.seed, self.size, self.steps, self.rank, self.held_out = seed, size, range(start, stop), rank, held_out

    def __iter__(self):
        for step in self.steps:
            rng = np.random.default_rng([self.seed, 1, step, self.rank, self.held_out])
            frames, targets = [], []
            for _ in range(self.size):
                identity, scene = draw_person(rng, self.held_out), Scene.random(rng)
                frame, known_place = render_augmented(identity, scene, 1, rng)
                frames.append(np.repeat(frame, TUBELET, axis=0))
                targets.append(attribute_targets(identity, scene, known_place))
            yield torch.from_numpy(np.stack(frames)), torch.tensor(targets)


class ClipBatches(IterableDataset):
    """Clips with their attribute classes and their questions, tokenised and packed for the block mask."""

    def __init__(self, processor, seed, size, questions, start, stop, rank=0, held_out=False):
        self.processor, self.seed, self.size, self.questions = processor, seed, size, questions
        self.steps, self.rank, self.held_out = range(start, stop), rank, held_out

    def __iter__(self):
        prefix = self.processor.encode_prefix()
        for step in self.steps:
            rng = np.random.default_rng([self.seed, 2, step, self.rank, self.held_out])
            clips, targets, rows = [], [], []
            for _ in range(self.size):
                identity, scene = draw_person(rng, self.held_out), Scene.random(rng)
                if self.held_out:
                    clip, known_place = render_clip(identity, scene, num_frames=NUM_FRAMES, size=IMAGE_SIZE), True
                else:
                    clip, known_place = render_augmented(identity, scene, NUM_FRAMES, rng)
                clips.append(clip)
                targets.append(attribute_targets(identity, scene, known_place))
                items = askable_questions(identity, scene, rng, self.questions, known_place)
                rows.append([self.encode(item, rng) for item in items])
            batch = pack(prefix, [[(ids, start) for _, ids, start in row] for row in rows])
            batch["clips"] = torch.from_numpy(np.stack(clips))
            batch["targets"] = torch.tensor(targets)
            batch["kinds"] = [[kind for kind, _, _ in row] for row in rows]
            yield batch

    def encode(self, item, rng) -> tuple[str, list[int], int]:
        """Kind, ids and start of the answer; some questions use the blank name instead of "the person"."""
        question, answer, subject = item.question, item.answer, None
        if rng.random() < BLANK_NAME_SHARE:
            subject = SUBJECT_TOKEN
            question, answer = (
                text.replace("The person", SUBJECT_TOKEN).replace("the person", SUBJECT_TOKEN)
                for text in (question, answer)
            )
        return item.kind, *self.processor.encode_qa(question, answer, subject)


def pack(prefix: list[int], rows: list[list[tuple[list[int], int]]]) -> dict[str, torch.Tensor]:
    """One row per clip: prefix, then its questions, each of which sees the prefix and itself only."""
    length = max(len(prefix) + sum(len(ids) for ids, _ in row) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    segments = torch.full((len(rows), length), -1)  # 0 prefix, 1.. questions, -1 padding
    for r, row in enumerate(rows):
        input_ids[r, : len(prefix)] = torch.tensor(prefix)
        positions[r, : len(prefix)] = torch.arange(len(prefix))
        segments[r, : len(prefix)] = 0
        at = len(prefix)
        for q, (ids, start) in enumerate(row):
            end = at + len(ids)
            input_ids[r, at:end] = torch.tensor(ids)
            labels[r, at + start : end] = input_ids[r, at + start : end]
            positions[r, at:end] = torch.arange(len(prefix), len(prefix) + len(ids))
            segments[r, at:end] = q + 1
            at = end
    return {"input_ids": input_ids, "labels": labels, "position_ids": positions, "segments": segments}


def block_mask(segments: torch.Tensor) -> torch.Tensor:
    """(B, L) segment numbers -> (B, 1, L, L): 0 where a token may look, a very low number elsewhere."""
    seen = group_mask(segments)
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def normalize(pixels: torch.Tensor, processor: PVChatProcessor) -> torch.Tensor:
    """(B, T, H, W, 3) uint8 -> (B, 1 tile, T, 3, H, W) as the video processor gives it."""
    video_processor = processor.video_processor
    mean = torch.tensor(video_processor.image_mean)[:, None, None]
    std = torch.tensor(video_processor.image_std)[:, None, None]
    return ((pixels.permute(0, 1, 4, 2, 3).float() / 255 - mean) / std)[:, None]


# Heads that exist during pretraining only


class AttributeHeads(nn.Module):
    """One classifier per attribute on its own attention pooling of a set of tokens."""

    def __init__(self, dim: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTE_VALUES), dim) * dim**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Linear(dim, len(values)) for values in ATTRIBUTE_VALUES.values())

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """(B, S, D) -> per attribute (B, classes)"""
        tokens = self.norm(tokens)
        weights = (tokens @ self.queries.T).softmax(dim=1)  # (B, S, A)
        pooled = weights.transpose(1, 2) @ tokens  # (B, A, D)
        return [head(pooled[:, i]) for i, head in enumerate(self.heads)]


def attribute_loss(logits: list[torch.Tensor], targets: torch.Tensor, names: list[str]) -> torch.Tensor:
    index = {name: i for i, name in enumerate(ATTRIBUTE_VALUES)}
    losses = [F.cross_entropy(logits[index[name]].float(), targets[:, index[name]]) for name in names]
    return torch.stack(losses).mean()


def attribute_accuracy(logits: list[torch.Tensor], targets: torch.Tensor) -> dict[str, float]:
    known = targets != -100
    return {
        name: (logits[i].argmax(-1) == targets[:, i])[known[:, i]].float().mean().item()
        for i, name in enumerate(ATTRIBUTE_VALUES)
    }


# Training


def learning_rate(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, cosine to 3 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def optimizer_for(groups: list[tuple[nn.Module, float]], weight_decay: float) -> torch.optim.AdamW:
    parameters = []
    for module, rate in groups:
        decayed = [p for p in module.parameters() if p.ndim > 1]
        others = [p for p in module.parameters() if p.ndim <= 1]
        parameters.append({"params": decayed, "lr": rate, "peak": rate, "weight_decay": weight_decay})
        parameters.append({"params": others, "lr": rate, "peak": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(parameters, betas=(0.9, 0.98), eps=1e-8)


def behind_the_encoder(model: PVChatForConditionalGeneration) -> nn.ModuleList:
    """All modules that read what the video encoder says."""
    inner = model.model
    queries = [inner.query_tokens, inner.extra_query_tokens, inner.subject_tokens]
    return nn.ModuleList([*queries, inner.qformer, inner.multi_modal_projector, inner.language_model, model.lm_head])


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean over processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Pretraining:
    """The two stages; every step's batch and learning rate depend on its number only."""

    def __init__(self, args: argparse.Namespace, rank: int = 0):
        self.args = args
        self.rank = rank
        self.out = Path(args.out)
        self.state_file = self.out.with_name(self.out.name + ".state.pt")
        torch.manual_seed(args.seed)
        tokenizer = build_tokenizer() if args.new_tokenizer else PreTrainedTokenizerFast.from_pretrained(EMBEDDED_BASE)
        config = build_config(tokenizer)
        self.processor = build_processor(tokenizer, config)
        self.model = PVChatForConditionalGeneration(config)
        self.model.set_attn_implementation("eager")  # short sequences: faster on a CPU than the fused kernels
        self.frame_heads = AttributeHeads(config.vision_config.hidden_size)
        self.token_heads = AttributeHeads(config.text_config.hidden_size)
        self.history: list[dict] = []
        self.seconds = 0.0

    def run(self) -> None:
        self.model.train()
        done = self.load_state()
        self.stage("frames", self.frame_steps(), self.args.frame_steps, done)
        self.stage("alignment", self.alignment_steps(), self.args.alignment_steps, done)

    def stage(self, name: str, make, steps: int, done: dict) -> None:
        start = done.get(name, {}).get("step", 0)
        if start >= steps:
            return
        optimizer, batches, loss_of, evaluate = make(start, steps)
        if "optimizer" in done.get(name, {}):
            optimizer.load_state_dict(done[name]["optimizer"])
        loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)
        bar = tqdm(loader, initial=start, total=steps, desc=name, mininterval=10, disable=self.rank > 0)
        since = time.monotonic()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for step, batch in enumerate(bar, start=start):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate(step, steps)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, parts = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            average_gradients(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if self.rank > 0:
                continue
            if step % 50 == 0:
                bar.set_postfix({k: f"{v:.3f}" for k, v in parts.items()})
            last = step + 1 == steps
            if (step + 1) % self.args.evaluate_every == 0 or last:
                self.seconds += time.monotonic() - since
                since = time.monotonic()
                self.history.append({"stage": name, "step": step + 1, "seconds": self.seconds, **parts, **evaluate()})
                print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in self.history[-1].items()}))
                self.save_state({name: {"step": step + 1, "optimizer": optimizer.state_dict()}}, done)
        done[name] = {"step": steps}

    def frame_steps(self):
        def make(start: int, steps: int):
            tower, norm = self.model.model.vision_tower, self.model.model.vision_layernorm
            optimizer = optimizer_for([(tower, 1e-3), (norm, 1e-3), (self.frame_heads, 1e-3)], weight_decay=0.05)

            def logits_of(frames):
                pixels = normalize(frames, self.processor)
                return self.frame_heads(norm(self.model.model.encode_video(pixels)[:, 0]))

            def loss_of(batch):
                frames, targets = batch
                loss = attribute_loss(logits_of(frames), targets, FRAME_ATTRIBUTES)
                return loss, {"loss": loss.item()}

            @torch.no_grad()
            def evaluate():
                frames, targets = next(iter(FrameBatches(self.args.seed, 512, 0, 1, held_out=True)))
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return attribute_accuracy(logits_of(frames), targets)

            batches = FrameBatches(self.args.seed, self.args.frame_batch, start, steps, self.rank)
            return optimizer, batches, loss_of, evaluate

        return make

    def alignment_steps(self):
        def make(start: int, steps: int):
            model = self.model.model
            if start == 0:  # the clip table starts from what the frame table has learned
                with torch.no_grad():
                    grid = model.config.vision_config.grid
                    space = model.vision_tower.embeddings.image_position_embedding
                    learned = space - self.initial_image_table()
                    clip_table = model.vision_tower.embeddings.position_embedding
                    clip_table[:, 1:] += learned[:, 1:].repeat(1, grid[0], 1)
                    clip_table[:, :1] += learned[:, :1]
            rate = 1e-3
            optimizer = optimizer_for(
                [
                    (model.vision_tower, 0.4 * rate),
                    (model.vision_layernorm, 0.4 * rate),
                    (behind_the_encoder(self.model), rate),
                    (self.token_heads, rate),
                ],
                weight_decay=0.02,
            )

            def loss_of(batch):
                output = self.text_logits(batch)
                losses = F.cross_entropy(output["logits"].float(), output["labels"], reduction="none")
                lm = (losses * output["weights"]).sum() / output["weights"].sum()
                heads = attribute_loss(self.token_heads(output["tokens"]), batch["targets"], list(ATTRIBUTE_VALUES))
                return lm + 0.5 * heads, {"lm": lm.item(), "heads": heads.item()}

            def evaluate():
                return self.evaluate(clips=96, questions=20)

            batches = ClipBatches(
                self.processor, self.args.seed, self.args.clip_batch, self.args.questions, start, steps, self.rank
            )
            return optimizer, batches, loss_of, evaluate

        return make

    def initial_image_table(self) -> torch.Tensor:
        from pvchat.modeling_pvchat.modeling_internvideo2 import sincos_position_embedding

        config = self.model.config.vision_config
        return sincos_position_embedding(config.hidden_size, (1, *config.grid[1:]))

    def text_logits(self, batch: dict) -> dict[str, torch.Tensor]:
        """Logits, next tokens and loss weights of questions and answers, (n, vocabulary), (n,), (n,); video tokens.

        Question tokens count a little: to foresee the value in "does the person have red hair?" the model must look
        the hair up, and the value that follows can then be compared with what was expected.
        """
        output = self.model.model(
            input_ids=batch["input_ids"],
            pixel_values_videos=normalize(batch["clips"], self.processor),
            attention_mask=block_mask(batch["segments"]),
            position_ids=batch["position_ids"],
            use_cache=False,
        )
        segments, labels = batch["segments"], batch["labels"]
        rows, columns = ((segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])).nonzero(as_tuple=True)
        answer = labels[rows, columns + 1] != -100
        first = answer & (labels[rows, columns] == -100)
        weights = torch.where(answer, 1.0, QUESTION_WEIGHT).masked_fill(first, FIRST_TOKEN_WEIGHT)
        return {
            "logits": self.model.lm_head(output.last_hidden_state[rows, columns]),
            "labels": batch["input_ids"][rows, columns + 1],
            "weights": weights,
            "answer": answer,
            "rows": rows,
            "segments": segments[rows, columns + 1],
            "tokens": output.video_hidden_states,
        }

    @torch.no_grad()
    def evaluate(self, clips: int, questions: int) -> dict[str, float]:
        """Share of exactly right answers per question type on held-out people.

        Every token is predicted from the true answer before it, so an answer counts as right exactly when greedy
        decoding would have produced it.
        """
        right, total = defaultdict(int), defaultdict(int)
        heads: list[dict] = []
        self.model.eval()
        for batch in ClipBatches(self.processor, 7, 16, questions, 0, math.ceil(clips / 16), held_out=True):
            with torch.autocast("cpu", dtype=torch.bfloat16) if self.args.bf16_evaluation else nullcontext():
                output = self.text_logits(batch)
                heads.append(attribute_accuracy(self.token_heads(output["tokens"]), batch["targets"]))
            wrong = (output["answer"] & (output["logits"].argmax(-1) != output["labels"])).long()
            errors = torch.zeros(len(batch["kinds"]), questions + 1, dtype=torch.long)
            errors.index_put_((output["rows"], output["segments"]), wrong, accumulate=True)
            for r, kinds in enumerate(batch["kinds"]):
                for q, kind in enumerate(kinds):
                    right[kind] += int(errors[r, q + 1] == 0)
                    total[kind] += 1
        self.model.train()
        scores = {kind: right[kind] / total[kind] for kind in sorted(total)}
        return {**scores, "heads_mean": float(np.mean([list(h.values()) for h in heads]))}

    def load_state(self) -> dict:
        if not self.state_file.exists():
            return {}
        state = torch.load(self.state_file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.frame_heads.load_state_dict(state["frame_heads"])
        self.token_heads.load_state_dict(state["token_heads"])
        self.history, self.seconds = state["history"], state["seconds"]
        return state["done"]

    def save_state(self, now: dict, done: dict) -> None:
        state = {
            "model": self.model.state_dict(),
            "frame_heads": self.frame_heads.state_dict(),
            "token_heads": self.token_heads.state_dict(),
            "history": self.history,
            "seconds": self.seconds,
            "done": {**done, **now},
        }
        temporary = self.state_file.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.state_file)


def save_model(pretraining: Pretraining, args: argparse.Namespace) -> dict:
    """Writes model (bf16), processor and `pretraining.json` (scores of the saved weights, history, command)."""
    model = pretraining.model.to(torch.bfloat16)
    model.save_pretrained(args.out)
    pretraining.processor.save_pretrained(args.out)
    pretraining.model = PVChatForConditionalGeneration.from_pretrained(args.out, dtype=torch.float32)
    args.bf16_evaluation = False
    scores = pretraining.evaluate(clips=args.test_clips, questions=40)
    record = {
        "scores": scores,
        "test": f"{args.test_clips} clips of held-out people, 40 questions each, exact answers",
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(pretraining.seconds),
        "arguments": {k: v for k, v in vars(args).items() if k not in ("out",)},
        "torch": torch.__version__,
        "history": pretraining.history,
    }
    (Path(args.out) / "pretraining.json").write_text(json.dumps(record, indent=1))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frame-steps", type=int, default=700)
    parser.add_argument("--frame-batch", type=int, default=48, help="pictures of one process in one step")
    parser.add_argument("--alignment-steps", type=int, default=2400)
    parser.add_argument("--clip-batch", type=int, default=10, help="clips of one process in one step")
    parser.add_argument("--questions", type=int, default=10, help="questions of a clip in one step")
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--test-clips", type=int, default=400)
    parser.add_argument("--processes", type=int, default=2, help="one core each; gradients are averaged")
    parser.add_argument("--new-tokenizer", action="store_true", help="train one instead of taking the embedded one")
    parser.add_argument("--snapshot", action="store_true", help="write the model as far as it is trained, then stop")
    args = parser.parse_args()
    args.bf16_evaluation = True
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    if not args.snapshot:
        mp.spawn(train, args=(args,), nprocs=args.processes)
    pretraining = Pretraining(args)
    pretraining.load_state()
    print(json.dumps(save_model(pretraining, args)["scores"]))


def train(rank: int, args: argparse.Namespace) -> None:
    """One of the processes; the first writes the state."""
    torch.set_num_threads(1)
    rendezvous = Path(args.out).with_name(f"{Path(args.out).name}.{os.getppid()}.rendezvous").resolve()
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=args.processes)
    Pretraining(args, rank).run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
