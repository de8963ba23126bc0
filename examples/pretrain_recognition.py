"""Teaches `pvchat-cartoon` to compare people: the last stage of its pretraining, after `pretrain_cartoon.py`.

    python examples/pretrain_recognition.py --base BASE --out pvchat/assets/pvchat-cartoon     # about an hour
    python examples/pretrain_recognition.py --base BASE --out /tmp/try --steps 20 --families 20

A family is one person in two scenes and two look-alikes who differ in one or two features; nobody of the held-out
identities is in one. What the Q-Former says about one clip (`PVChatModel.propose_subject_tokens`) is given to it as
subject tokens while it watches another clip, and the language model is asked whether `<sks>` is there: the same
person, a look-alike, or somebody else. The model learns to compare, and remembers nobody: subject tokens are an input.

Only the last blocks of the video encoder are trained, so every clip goes through the others once. One classifier per
feature on the subject tokens' outputs ("is this the same here?") gives the comparison a gradient long before the
answer does; others, on the encoder's states and on the proposed tokens, keep every feature readable there. All of them
are thrown away. Now and then a head that a subject's routers will be able to close is left out, so that closing some
later costs little. What `<sks>` wears and does, and where, is asked too, and refused where somebody else is shown.
General questions go on, with the subject tokens of the base, so that nothing is forgotten.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pretrain_cartoon import (
    IMAGE_SIZE,
    NUM_FRAMES,
    AttributeHeads,
    attribute_loss,
    attribute_targets,
    average_gradients,
    behind_the_encoder,
    block_mask,
    draw_person,
    learning_rate,
    normalize,
    optimizer_for,
    pack,
    render_augmented,
)
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from pvchat.dataset_builder.cartoon import ATTRIBUTE_VALUES, Identity, Scene, general_questions, render_clip
from pvchat.dataset_builder.cartoon.cast import IDENTITY_FEATURES
from pvchat.dataset_builder.cartoon.truth import activity, clothing, location
from pvchat.dataset_builder.questions import load_bank
from pvchat.modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.modeling_pvchat.processing_pvchat import SUBJECT_TOKEN, PVChatProcessor

FAMILY = 4  # clips: a person twice, two look-alikes once each
FEATURES = len(IDENTITY_FEATURES)
HARD_SHARE = 0.7  # of the strangers, who are look-alikes once the ramp is over
HEAD_DROPOUT = 0.3  # of a head that can be routed
FIRST_TOKEN_WEIGHT = 5.0
EXISTENCE_QUESTIONS, GENERAL_QUESTIONS, GENERAL_CLIPS = 2, 5, 6
QUIET_SHARE = 0.3  # of the steps, in which only the classifiers ask who it is
RAMP_SHARE = 0.4  # of the steps, until HARD_SHARE is reached


class Families:
    """Clips of families: `states` (F, 4, S, D_v) bfloat16 after the encoder's first blocks, `targets` (F, 4, A)."""

    def __init__(
        self, model, processor, seed: int, rank: int, count: int, num_vision_layers: int, held_out: bool = False
    ):
        states, targets = [], []
        for number in tqdm(range(count), desc="families", mininterval=10, disable=rank > 0):
            rng = np.random.default_rng([seed, 3, number, rank, held_out])
            person = draw_person(rng, held_out)
            people = [person, person, person.look_alike(rng, 1), person.look_alike(rng, int(rng.integers(1, 3)))]
            clips = []
            for identity in people:
                scene, known_place = Scene.random(rng), True
                if held_out:
                    clip = render_clip(identity, scene, num_frames=NUM_FRAMES, size=IMAGE_SIZE)
                else:
                    clip, known_place = render_augmented(identity, scene, NUM_FRAMES, rng)
                clips.append(clip)
                targets.append(attribute_targets(identity, scene, known_place))
            pixels = normalize(torch.from_numpy(np.stack(clips)), processor)
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                states.append(model.model.encode_video(pixels, num_vision_layers)[:, 0].bfloat16())
        self.states = torch.stack(states)
        self.targets = torch.tensor(targets).unflatten(0, (count, FAMILY))

    def __len__(self) -> int:
        return len(self.states)


def draw_pairs(families: int, rng: np.random.Generator, hard_share: float) -> list[tuple[int, int, int]]:
    """(clip shown, clip that the subject tokens come from, same person) of a batch.

    Two of five are the same: to accept somebody else is worse than to miss the person.
    """
    pairs = []
    for family in range(families):
        first, other = FAMILY * family, FAMILY * int((family + 1 + rng.integers(families - 1)) % families)
        pairs += [(first, first + 1, 1), (first + 1, first, 1)]
        for _ in range(3):
            if rng.random() < hard_share:
                mixed = [(first + 2, first), (first + 3, first + 1), (first, first + 2), (first + 1, first + 3)]
                pairs.append((*mixed[int(rng.integers(4))], 0))
            else:
                pairs.append((other + int(rng.integers(FAMILY)), first + int(rng.integers(2)), 0))
    return pairs


def truth_of(values: list[int]) -> tuple[Identity, Scene, bool]:
    """Classes of `attribute_targets` -> who and what they stand for, and whether the place is known."""
    truth = {name: options[max(v, 0)] for (name, options), v in zip(ATTRIBUTE_VALUES.items(), values, strict=True)}
    scene = Scene(**{name: value for name, value in truth.items() if name not in IDENTITY_FEATURES})
    known_place = values[list(ATTRIBUTE_VALUES).index("place")] != -100
    return Identity(**{name: truth[name] for name in IDENTITY_FEATURES}), scene, known_place


class SameHeads(nn.Module):
    """Per identity feature, and for all of them together: is it the same? From the subject tokens' outputs."""

    def __init__(self, dim: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(FEATURES + 1, dim) * dim**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.weight = nn.Parameter(torch.zeros(FEATURES + 1, dim))
        self.bias = nn.Parameter(torch.zeros(FEATURES + 1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, n, D) -> (B, features + 1) logits"""
        tokens = self.norm(tokens)
        pooled = (tokens @ self.queries.T).softmax(dim=1).transpose(1, 2) @ tokens
        return (pooled * self.weight).sum(-1) + self.bias


class Recognition:
    """The stage; every step depends on its number and the families only."""

    def __init__(self, args: argparse.Namespace, rank: int):
        self.args, self.rank = args, rank
        torch.manual_seed(args.seed)
        self.full = PVChatForConditionalGeneration.from_pretrained(args.base, dtype=torch.float32)
        self.full.set_attn_implementation("eager")
        self.processor = PVChatProcessor.from_pretrained(args.base)
        self.model = self.full.model
        dim = self.model.config.qformer_config.hidden_size
        self.heads = SameHeads(dim)
        self.encoder_heads = AttributeHeads(self.model.config.vision_config.hidden_size)
        self.subject_heads = AttributeHeads(dim)
        self.frozen_blocks = len(self.model.vision_tower.layers) - args.encoder_blocks
        self.leave_heads_out()
        torch.manual_seed(1000 * args.seed + rank)
        self.bank, self.prefix = load_bank(), self.processor.encode_prefix()
        self.yes, self.no = (self.first_token(text) for text in ("Yes, it is.", "No, it is not."))
        self.history: list[dict] = []

    def first_token(self, answer: str) -> int:
        ids, start = self.processor.encode_qa("?", answer, SUBJECT_TOKEN)
        return ids[start]

    def leave_heads_out(self) -> None:
        """While the Q-Former trains, a routable head is missing from an attention's output, clip by clip."""
        config = self.model.config.qformer_config
        shared, routed = config.num_shared_heads, config.num_routed_heads

        def drop(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
            if not module.training:
                return None
            output = inputs[0].unflatten(-1, (shared + routed, -1))  # (B, T, N, d)
            keep = output.new_ones(len(output), 1, shared + routed, 1)
            keep[:, :, shared:].bernoulli_(1 - HEAD_DROPOUT)
            return ((output * keep).flatten(-2),)

        for layer in self.model.qformer.encoder.layer[config.routing_start_layer :]:
            for attention in (layer.attention, layer.crossattention):
                if attention is not None:
                    attention.output.dense.register_forward_pre_hook(drop)

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """(B, S, D_v) after the frozen blocks -> the same after all blocks and the norm."""
        return self.model.vision_layernorm(self.model.vision_tower.run_layers(states, start=self.frozen_blocks))

    def queries(self, subject_tokens: torch.Tensor) -> torch.Tensor:
        general = torch.cat([self.model.query_tokens.weight, self.model.extra_query_tokens.weight])
        return torch.cat([general.expand(len(subject_tokens), -1, -1), subject_tokens], dim=1)

    def watch(self, encoded: torch.Tensor, pairs: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Q-Former outputs (clips, Q, D) with the base's subject tokens, the tokens proposed from them
        (clips, subject tokens, D), and the outputs (pairs, Q, D) with these."""
        base = self.model.subject_tokens.weight.expand(len(encoded), -1, -1)
        alone = self.model.qformer(self.queries(base), encoded).last_hidden_state
        proposed = self.model.pool_to_subject_tokens(alone)
        shown, subject = (torch.tensor([pair[i] for pair in pairs]) for i in (0, 1))
        together = self.model.qformer(self.queries(proposed[subject]), encoded[shown]).last_hidden_state
        return alone, proposed, together

    def named_rows(self, pairs: list, targets: torch.Tensor, rng: np.random.Generator, described: int) -> dict:
        """Questions about `<sks>`: is it there, then `described` of what it wears, does, and where it is."""
        rows = []
        for shown, _, same in pairs:
            _, scene, known_place = truth_of(targets[shown].tolist())
            items = self.bank.existence(SUBJECT_TOKEN, bool(same), EXISTENCE_QUESTIONS, int(rng.integers(2**31)))
            sentences = {"appearance": clothing(scene), "action": activity(scene), "location": location(scene)}
            for category in rng.permutation([c for c in sentences if known_place or c != "location"])[:described]:
                item = self.bank.refuse(SUBJECT_TOKEN, str(category), 1, int(rng.integers(2**31)))[0]
                true_answer = sentences[category].replace("The person", SUBJECT_TOKEN)
                items.append(replace(item, answer=true_answer) if same else item)
            rows.append([self.processor.encode_qa(item.question, item.answer, SUBJECT_TOKEN) for item in items])
        return pack(self.prefix, rows)

    def general_rows(self, targets: torch.Tensor, rng: np.random.Generator) -> dict:
        rows = []
        for values in targets.tolist():
            identity, scene, known_place = truth_of(values)
            items = [
                item
                for item in general_questions(identity, scene, rng, 4 * GENERAL_QUESTIONS)
                if known_place or (item.kind != "place" and "place" not in item.claim)
            ][:GENERAL_QUESTIONS]
            row = []
            for item in items:
                texts, subject = (item.question, item.answer), None
                if rng.random() < 0.5:
                    subject = SUBJECT_TOKEN
                    texts = [t.replace("The person", subject).replace("the person", subject) for t in texts]
                row.append(self.processor.encode_qa(*texts, subject))
            rows.append(row)
        return pack(self.prefix, rows)

    def answers(self, outputs: torch.Tensor, rows: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of the answers, logits of their first tokens (n, vocabulary), and what these should have been (n,)."""
        embeds = self.model.get_input_embeddings()(rows["input_ids"])
        video = self.model.multi_modal_projector(outputs)
        slots = (rows["input_ids"] == self.model.config.video_token_id)[..., None].expand_as(embeds)
        states = self.model.language_model(
            inputs_embeds=embeds.masked_scatter(slots, video.to(embeds.dtype)),
            attention_mask=block_mask(rows["segments"]),
            position_ids=rows["position_ids"],
            use_cache=False,
        ).last_hidden_state
        labels = rows["labels"]
        at = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        first = labels[:, :-1][at] == -100
        logits, wanted = self.full.lm_head(states[:, :-1][at]).float(), labels[:, 1:][at]
        weights = torch.where(first, FIRST_TOKEN_WEIGHT, 1.0)
        loss = (F.cross_entropy(logits, wanted, reduction="none") * weights).sum() / weights.sum()
        return loss, logits[first], wanted[first]

    def step_loss(self, families: Families, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([self.args.seed, 4, step, self.rank])
        share = 1.0 if self.args.more else step / self.args.steps
        chosen = rng.choice(len(families), self.args.batch, replace=False)
        encoded = self.encode(families.states[chosen].flatten(0, 1).float())
        targets = families.targets[chosen].flatten(0, 1)
        pairs = draw_pairs(self.args.batch, rng, HARD_SHARE * min(1.0, share / RAMP_SHARE))
        alone, proposed, together = self.watch(encoded, pairs)
        logits = self.heads(together[:, -self.model.config.num_subject_tokens :].float())
        same = torch.stack([targets[x, :FEATURES] == targets[s, :FEATURES] for x, s, _ in pairs]).float()
        whole = torch.tensor([float(label) for *_, label in pairs])
        parts = {
            "features": F.binary_cross_entropy_with_logits(logits[:, :FEATURES], same),
            "person": F.binary_cross_entropy_with_logits(logits[:, FEATURES], whole),
            "encoder": attribute_loss(self.encoder_heads(encoded), targets, list(ATTRIBUTE_VALUES)),
            "proposed": attribute_loss(self.subject_heads(proposed), targets, list(IDENTITY_FEATURES)),
        }
        some = rng.choice(len(encoded), GENERAL_CLIPS, replace=False)
        parts["general"] = self.answers(alone[some], self.general_rows(targets[some], rng))[0]
        if share >= QUIET_SHARE:
            parts["named"], first, wanted = self.answers(together, self.named_rows(pairs, targets, rng, 1))
            parts["decision"] = F.cross_entropy(first, wanted).detach()
        helpers = 2 * parts["features"] + parts["person"] + parts["encoder"] + parts["proposed"]
        loss = helpers + parts["general"] + parts.get("named", 0.0)
        return loss, {name: value.item() for name, value in parts.items()}

    def run(self) -> None:
        render = partial(Families, self.full, self.processor, num_vision_layers=self.frozen_blocks)
        families = render(seed=self.args.seed, rank=self.rank, count=self.args.families)
        held_out = render(seed=7, rank=0, count=96, held_out=True) if self.rank == 0 else None
        rate = self.args.learning_rate
        encoder = nn.ModuleList([*self.model.vision_tower.layers[self.frozen_blocks :], self.model.vision_layernorm])
        heads = nn.ModuleList([self.heads, self.encoder_heads, self.subject_heads])
        optimizer = optimizer_for(
            [(behind_the_encoder(self.full), rate), (encoder, 0.4 * rate), (heads, 3 * rate)], weight_decay=0.02
        )
        self.full.train()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        started = time.monotonic()
        for step in tqdm(range(self.args.steps), desc="recognition", mininterval=10, disable=self.rank > 0):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate(step, self.args.steps, warmup=50)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, parts = self.step_loss(families, step)
            optimizer.zero_grad()
            loss.backward()
            average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if self.rank == 0 and ((step + 1) % self.args.evaluate_every == 0 or step + 1 == self.args.steps):
                record = {"step": step + 1, "seconds": round(time.monotonic() - started), **parts}
                self.history.append(record | self.evaluate(held_out))
                print(json.dumps({k: round(v, 3) for k, v in self.history[-1].items()}), flush=True)
                self.save()

    @torch.no_grad()
    def evaluate(self, families: Families) -> dict[str, float]:
        """On held-out people: share of right features, and of look-alikes and strangers the decision's AUROC and
        balanced accuracy at even odds."""
        self.full.eval()
        rng = np.random.default_rng(5)
        scores: dict[str, float] = {}
        for name, hard_share in (("strangers", 0.0), ("look_alikes", 1.0)):
            margins, labels, right = [], [], []
            for start in range(0, len(families), 8):
                states = families.states[start : start + 8].flatten(0, 1).float()
                targets = families.targets[start : start + 8].flatten(0, 1)
                pairs = draw_pairs(8, rng, hard_share)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    _, _, together = self.watch(self.encode(states), pairs)
                    logits = self.heads(together[:, -self.model.config.num_subject_tokens :].float())
                    _, first, _ = self.answers(together, self.named_rows(pairs, targets, rng, 0))
                same = torch.stack([targets[x, :FEATURES] == targets[s, :FEATURES] for x, s, _ in pairs])
                right.append(((logits[:, :FEATURES] > 0) == same).float().mean().item())
                margins += (first[:, self.yes] - first[:, self.no]).view(-1, EXISTENCE_QUESTIONS).mean(1).tolist()
                labels += [label for *_, label in pairs]
            margins, labels = np.array(margins), np.array(labels)
            hit, pass_by = (margins[labels == 1] > 0).mean(), (margins[labels == 0] <= 0).mean()
            scores |= {
                f"{name}_auroc": float(roc_auc_score(labels, margins)),
                f"{name}_accuracy": float((hit + pass_by) / 2),
                f"{name}_features": float(np.mean(right)),
            }
        self.full.train()
        return scores

    def save(self) -> None:
        """bf16 weights, processor and the curve so far, under a temporary name and renamed."""
        out = Path(self.args.out)
        new = out.with_name(f".{out.name}.new")
        weights = {k: v.to(torch.bfloat16) for k, v in self.full.state_dict().items()}
        self.full.save_pretrained(new, state_dict=weights)
        config = json.loads((new / "config.json").read_text()) | {"dtype": "bfloat16"}
        for part in ("vision_config", "qformer_config", "text_config"):
            config[part].pop("dtype", None)
        (new / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        self.processor.save_pretrained(new)
        record = {
            "arguments": {k: v for k, v in vars(self.args).items() if k not in ("out", "base")},
            "history": self.history,
        }
        (new / "recognition.json").write_text(json.dumps(record, indent=1))
        out.mkdir(parents=True, exist_ok=True)
        for file in new.iterdir():
            os.replace(file, out / file.name)
        new.rmdir()


def train(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rendezvous = Path(args.out).with_name(f"{Path(args.out).name}.{os.getppid()}.rendezvous").resolve()
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=args.processes)
    Recognition(args, rank).run()
    dist.destroy_process_group()
    if rank == 0:
        rendezvous.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder written by pretrain_cartoon.py")
    parser.add_argument("--out", required=True, help="folder of the finished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", type=int, default=1800, help="families that one process draws")
    parser.add_argument("--batch", type=int, default=8, help="families of one process in one step")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--encoder-blocks", type=int, default=2, help="of the encoder that are trained, from the last")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--more", action="store_true", help="the base was through this before: all questions at once")
    parser.add_argument("--evaluate-every", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2, help="one core each; gradients are averaged")
    args = parser.parse_args()
    mp.spawn(train, args=(args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
