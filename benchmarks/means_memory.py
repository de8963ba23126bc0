"""Means in the head, in kernels and in what is held in memory, one by one (see `training_means`)."""

from __future__ import annotations

import importlib.util
import os
import time
from importlib.metadata import version

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pvchat.trainers.collator import IGNORED
from pvchat.trainers.video_stage import VideoStageTrainer

from .cost_setup import ANSWER_TOKENS, config_of, make_model
from .step_pairs import BATCH, EPOCHS, QUESTIONS, Bench, Row, in_turn

CLIPS = 81  # of the paper's training split
CHUNK = 64  # answer tokens whose logits exist at a time
FOUR_BITS = 0.5 + 4 / 64  # bytes of a weight: nf4, and a float32 scale for 64 of them
EIGHT_BIT_ADAM = 2 + 2 * 4 / 256  # bytes of both moments of a value, and a float32 scale for 256 of each


# -- the head ---------------------------------------------------------------------------------------------------------


class AllLogits(VideoStageTrainer):
    """Logits of every token, those of the prompt too."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        keep = torch.arange(inputs["labels"].shape[1] - 1)
        return super().compute_loss(model, inputs | {"logits_to_keep": keep}, return_outputs, num_items_in_batch)


class ChunkedLoss(VideoStageTrainer):
    """Logits of `CHUNK` answer tokens at a time, computed again for their gradient."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        base = model.get_base_model()
        head, base.lm_head = base.lm_head, torch.nn.Identity()
        inputs = dict(inputs)
        labels, weights, keep = (inputs.pop(name) for name in ("labels", "loss_weights", "logits_to_keep"))
        try:
            outputs = model(**inputs, use_cache=False, logits_to_keep=keep)
        finally:
            base.lm_head = head

        def summed(hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            logits = head(hidden).float()
            losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
            return (losses * weight).sum()

        parts = (outputs.logits, labels[:, 1:][:, keep], weights[:, 1:][:, keep])
        chunks = zip(*(part.flatten(0, 1).split(CHUNK) for part in parts), strict=True)
        count = labels[:, 1:].ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        lm_loss = sum(checkpoint(summed, *chunk, use_reentrant=False) for chunk in chunks) / count
        terms = self._sparsity_terms(outputs.router_logits, labels.ne(IGNORED).any(dim=1))
        self._note(lm_loss, terms)
        return lm_loss if terms is None else lm_loss + terms.loss


def logits(bench: Bench) -> list[Row]:
    kept = QUESTIONS * ANSWER_TOKENS
    return [
        Row(
            "no logits for the prompt",
            f"logits of the {kept} places before an answer token; without: of all",
            "yes",
            "The loss reads nothing else, so leaving them out costs nothing.",
            bench.compare(bench.one(trainer_class=AllLogits), bench.one()),
            bench.full.ratios({"trainer_class": AllLogits}, {}),
        ),
        Row(
            "cross-entropy in chunks",
            f"{CHUNK} answer tokens at a time",
            "no",
            f"With logits of {kept} tokens only there is little left to save, and each is computed twice.",
            bench.compare(bench.one(), bench.one(trainer_class=ChunkedLoss)),
            bench.full.ratios({}, {"trainer_class": ChunkedLoss}),
        ),
    ]


# -- kernels and memory -----------------------------------------------------------------------------------------------


def liger(bench: Bench) -> list[Row]:
    return [
        Row(
            "Liger kernels",
            "fused norms, rotary positions, SwiGLU and loss",
            "not measured",
            "They are Triton kernels and need a GPU; nothing here says whether they help.",
        )
    ]


def checkpointing(bench: Bench) -> list[Row]:
    bytes_with = bench.full.count("bytes", checkpointing=True)
    return [
        Row(
            "activation checkpointing",
            "every layer of encoder, Q-Former and language model",
            "setting",
            f"It trades time for memory: {bytes_with / 1e9:.1f} GB at full size instead of "
            f"{bench.full.count('bytes') / 1e9:.1f}; on with `gradient_checkpointing=True`.",
            bench.compare(bench.one(), bench.one(checkpointing=True)),
            bench.full.ratios({}, {"checkpointing": True}),
        )
    ]


def compiled(bench: Bench) -> list[Row]:
    setting = "every layer of the language model, light; a run with batches of several lengths"
    model = make_model("tiny", "light", seed=bench.seed)
    plain = bench.one()
    side = bench.one(model=model)
    for layer in model.get_base_model().model.language_model.layers:
        layer.compile()
    before, os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ.get("TORCHINDUCTOR_CACHE_DIR"), str(bench.folder / "c")
    other = bench.tiny.side([[[bench.tiny.rows[1]]]], model=model)  # 15 questions
    start = time.perf_counter()
    try:
        side.run()
        other.run()
    except RuntimeError as error:
        reason = f"A C++ compiler is needed ({str(error).splitlines()[0]})."
        return [Row("torch.compile", setting, "not measured", reason)]
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
    taken = time.perf_counter() - start
    ratios = in_turn(plain.run, side.run, bench.repeats)
    steps = EPOCHS * -(-CLIPS // BATCH)
    run = steps * ratios["seconds_without"] / (steps * ratios["seconds_with"] + taken)
    return [
        Row(
            "torch.compile",
            setting,
            "no",
            f"Compiling takes {taken:.0f} s, so a run of {steps} such steps is {run:.2f} times as fast; the numbers "
            f"are those of a step after that.",
            ratios,
        )
    ]


def masters(bench: Bench) -> list[Row]:
    trained, every = (value_counts(bench, "light")[name] for name in ("trained", "all"))
    total = bench.full.count("bytes", checkpointing=True)
    return [
        Row(
            "float32 for what is trained only",
            "light; without: a float32 copy of every weight; counted, with checkpointing",
            "yes",
            f"{trained / 1e6:.0f} million of {every / 1e9:.1f} billion values are trained.",
            full={"bytes": (total + 4 * (every - trained)) / total},
        )
    ]


def four_bit(bench: Bench) -> list[Row]:
    total = bench.full.count("bytes", checkpointing=True)
    linears = value_counts(bench, "light")["linears"]
    small = total - (2 - FOUR_BITS) * linears
    if importlib.util.find_spec("bitsandbytes") is None:
        tiny, said = {}, "Not timed: pip install 'pvchat[quant]'."
    else:
        tiny = bench.compare(bench.one(), bench.one(model=four_bit_model(bench)))
        said = f"It saves room, not time (bitsandbytes {version('bitsandbytes')} on a processor)."
        del tiny["flops"]  # the counter does not know products of 4 bits
    return [
        Row(
            "base in 4 bits",
            "light, linears of the language model in nf4; bytes counted, with checkpointing",
            "setting",
            f"{small / 1e9:.1f} GB at full size instead of {total / 1e9:.1f}, for smaller cards. {said}",
            tiny,
            {"bytes": total / small},
        )
    ]


def four_bit_model(bench: Bench):
    """The tiny model of `light`, the linears of its language model in nf4 as docs/hub.md says."""
    from transformers import BitsAndBytesConfig

    from pvchat.modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
    from pvchat.trainers.adapter import AdapterSettings, build_subject_model

    torch.manual_seed(bench.seed)
    folder = bench.folder / "base"
    PVChatForConditionalGeneration._from_config(config_of("tiny")).save_pretrained(folder)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["model.vision_tower", "model.qformer", "model.multi_modal_projector", "lm_head"],
    )
    base = PVChatForConditionalGeneration.from_pretrained(folder, quantization_config=settings, device_map="cpu")
    return build_subject_model(base, AdapterSettings(rank=2, dropout=0.0), bench.seed)


def eight_bit_adam(bench: Bench) -> list[Row]:
    rows = []
    for profile in ("light", "paper"):
        trained = value_counts(bench, profile)["trained"]
        total = bench.full.count("bytes", profile=profile, checkpointing=True)
        saved = (8 - EIGHT_BIT_ADAM) * trained
        rows.append(
            Row(
                "optimiser states in 8 bits",
                f"{profile}; counted, with checkpointing",
                "no",
                f"{trained / 1e6:.0f} million values are trained, so it saves {saved / 1e9:.2f} GB of "
                f"{total / 1e9:.1f}.",
                full={"bytes": total / (total - saved)},
            )
        )
    return rows


def value_counts(bench: Bench, profile: str) -> dict[str, int]:
    """Number of values at full size: trained in stage 2, all, and in frozen linears of the language model."""
    bench.full.count("bytes", profile=profile, checkpointing=True)  # a trainer has set what is trained
    counts = {"trained": 0, "all": 0, "linears": 0}
    for name, parameter in bench.full.shapes(profile).model.named_parameters():
        counts["all"] += parameter.numel()
        counts["trained"] += parameter.numel() * parameter.requires_grad
        if ".language_model.layers." in name and name.endswith("_proj.base_layer.weight"):
            counts["linears"] += parameter.numel()
    return counts
