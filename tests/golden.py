"""Compares the package with golden vectors that the authors' code computed.

    python -m tests.golden ../shared/golden
    python -m tests.golden DIR --json

A golden file is `X.safetensors` with tensors `weights.<authors' name>`, `input.*` and `output.*` and a header entry
`meta` (the same JSON as `X.json`) that holds its config. What a file is about is read off its tensors, never off its
file name; sizes, layer counts, routed layers, head splits, tiles and seeds are the file's own. JSON files without
tensors (prompt layout, state-dict listings, trainability) are recognised by their keys.

Error = max |ours - theirs| / max |theirs| (absolute where theirs is all zero); integers and rates must be equal. Every
output of a file is compared or listed as skipped with the reason; one that is neither fails. Exit code: 0 all within
tolerance, 1 something is not, 2 there is nothing to check.
"""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pvchat.modeling_pvchat.configuration_pvchat import PVChatConfig, PVChatQFormerConfig
from pvchat.modeling_pvchat.convert_pvchat import (
    config_from_reference,
    convert_name,
    convert_state_dict,
    dead_names,
    qformer_config_from_reference,
    split_lora,
    to_reference_names,
    vision_config_from_reference,
)
from pvchat.modeling_pvchat.modeling_internvideo2 import PVChatVisionModel, interpolate_position_embedding
from pvchat.modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.modeling_pvchat.modeling_qformer import PVChatQFormerModel, head_alphas, relu_gates
from pvchat.modeling_pvchat.sparsity import (
    REFERENCE_HAE_WEIGHT_START,
    SPARSITY_GAIN,
    ReferenceSparsityState,
    reference_module_loss,
    reference_spr_loss,
)
from tests.reference_preprocessing import closest_aspect_ratio, hd_padding

# Allowed errors, from what the reference itself reaches against float64 (reference notes, section 4).
VISION = PREPROCESSING = 1e-5
QFORMER = GATES = 5e-5
MODEL = 1e-4
GRADIENT = 3e-4
SCHEDULE = 1e-6
EXACT = 0.0

QUERY_TABLES = ("query_tokens", "extra_query_tokens", "personal_query_tokens")
EOS = 2  # of the golden language models


@dataclass(frozen=True)
class Result:
    """One compared (or skipped) quantity."""

    case: str
    group: str
    quantity: str
    status: str  # ok | fail | skip
    error: float | None = None
    allowed: float | None = None
    note: str = ""


@dataclass
class Case:
    """One golden file and what was found when comparing with it."""

    name: str
    config: dict
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    def compare(self, group: str, quantity: str, ours: torch.Tensor, allowed: float):
        """Compares with the output of that name, if the file has it."""
        if quantity in self.outputs:
            self.settled.add(quantity)
            self.compare_values(group, quantity, ours, self.outputs[quantity], allowed)

    def compare_values(self, group: str, quantity: str, ours: torch.Tensor, theirs: torch.Tensor, allowed: float):
        ours = ours.detach()
        if ours.shape != theirs.shape:
            self.fail(group, quantity, f"shape {tuple(ours.shape)}, must be {tuple(theirs.shape)}")
            return
        if not torch.isfinite(ours).all():
            self.fail(group, quantity, "not finite")
            return
        if allowed == EXACT:
            error = float((ours != theirs).sum())
        else:
            scale = float(theirs.double().abs().max()) or 1.0
            error = float((ours.double() - theirs.double()).abs().max()) / scale
        status = "ok" if error <= allowed else "fail"
        self.results.append(Result(self.name, group, quantity, status, error, allowed))

    def compare_sets(self, group: str, quantity: str, ours: Iterable[str], theirs: Iterable[str]):
        """Counts the names that are in one of the two only."""
        ours, theirs = set(ours), set(theirs)
        differ = ours ^ theirs
        note = f"only ours: {sorted(ours - theirs)[:3]}, only theirs: {sorted(theirs - ours)[:3]}" if differ else ""
        status = "fail" if differ else "ok"
        self.results.append(Result(self.name, group, quantity, status, float(len(differ)), EXACT, note))

    def fail(self, group: str, quantity: str, note: str):
        self.results.append(Result(self.name, group, quantity, "fail", note=note))

    def skip(self, quantity: str, note: str):
        self.settled.add(quantity)
        self.results.append(Result(self.name, "skipped", quantity, "skip", note=note))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.weights.items()}


def part(state_dict: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def loaded(module: nn.Module, state_dict: dict[str, torch.Tensor]) -> nn.Module:
    """`module` in eval mode with exactly these weights; raises if one is missing or left over."""
    module.load_state_dict({name: tensor.clone() for name, tensor in state_dict.items()}, strict=True)
    return module.eval()


# -- video encoder ----------------------------------------------------------------------------------------------------


def vision_model(case: Case) -> PVChatVisionModel:
    config = vision_config_from_reference(case.shapes, case.config)
    return loaded(PVChatVisionModel(config), part(convert_state_dict(case.weights), "model.vision_tower."))


def check_vit(case: Case):
    """Start tables; then, for clip and image, everything from patches to the LayerNorm behind the encoder."""
    model = vision_model(case)
    tables = PVChatVisionModel(model.config).embeddings
    for key, table in (("pos_embed", tables.position_embedding), ("img_pos_embed", tables.image_position_embedding)):
        case.compare("forward", f"init.{key}", table, VISION)
    norm = loaded(
        nn.LayerNorm(model.config.hidden_size, eps=model.config.layer_norm_eps),
        part(convert_state_dict(case.weights), "model.vision_layernorm."),
    )
    for name, pixels in case.inputs.items():
        seen: dict[str, torch.Tensor] = {"patch_embed": model.embeddings.patches(pixels).flatten(2, 3)}
        hooks = [model.embeddings.register_forward_hook(_keep(seen, "embeddings"))]
        for i, layer in enumerate(model.layers):
            for key, module in (
                (f"block{i}", layer),
                (f"block{i}.attn", layer.attention),
                (f"block{i}.q_normed", layer.attention.q_norm),
                (f"block{i}.k_normed", layer.attention.k_norm),
            ):
                hooks.append(module.register_forward_hook(_keep(seen, key)))
        seen["x_vis"] = model(pixels).last_hidden_state
        seen["vision_layernorm"] = norm(seen["x_vis"])
        for hook in hooks:
            hook.remove()
        for key, ours in seen.items():
            case.compare("forward", f"{name}.{key}", ours, VISION)


def _keep(seen: dict[str, torch.Tensor], key: str) -> Callable:
    def hook(module, args, output):
        seen[key] = output[0] if isinstance(output, tuple) else output  # attention returns its weights, too

    return hook


def check_vit_grad(case: Case):
    """Gradients of `sum(x_vis * probe)`."""
    model = vision_model(case)
    pixels = case.inputs["video"].clone().requires_grad_()
    (model(pixels).last_hidden_state * case.inputs["probe"]).sum().backward()
    gradients = {f"model.vision_tower.{name}": p.grad for name, p in model.named_parameters()}
    for key in case.outputs:
        name = key.removeprefix("grad.")
        ours = pixels.grad if name == "input" else gradients.get(convert_name(name) or "")
        if ours is not None:
            case.compare("gradients", key, ours, GRADIENT)


def check_pos_interp(case: Case):
    """Position tables of another clip length or image size, and a clip of another length than the table."""
    model = vision_model(case)
    config = model.config
    table, image_table = case.inputs["pos_embed"], case.inputs["img_pos_embed"]
    frames, pixels = case.config["orig_t"], case.config["orig_img"]
    old = _grid(config, frames, pixels)
    for target, (new_frames, new_pixels) in case.config["targets"].items():
        new = _grid(config, new_frames, new_pixels)
        case.compare("forward", f"{target}.pos_embed", interpolate_position_embedding(table, old, new), VISION)
        # The authors leave the image table alone, so it is compared at its own grid.
        same = interpolate_position_embedding(image_table, (1, *old[1:]), (1, *old[1:]))
        case.compare("forward", f"{target}.img_pos_embed_unchanged", same, VISION)
    for key in case.outputs:
        if match := re.fullmatch(r"expand_pos_embed\.T(\d+)", key):
            ours = interpolate_position_embedding(
                model.embeddings.position_embedding, config.grid, _grid(config, int(match[1]), pixels)
            )
            case.compare("forward", key, ours, VISION)
        elif match := re.fullmatch(r"(video\d+)\.x_vis", key):
            case.compare("forward", key, model(case.inputs[match[1]]).last_hidden_state, VISION)


def _grid(config, frames: int, pixels: int) -> tuple[int, int, int]:
    side = pixels // config.patch_size
    return frames // config.tubelet_size, side, side


# -- Q-Former ---------------------------------------------------------------------------------------------------------


class QFormerWithQueries(nn.Module):
    """A Q-Former and its query tables, under the names they have in the whole model."""

    def __init__(self, case: Case):
        super().__init__()
        converted = convert_state_dict(case.weights)
        self.qformer = loaded(
            PVChatQFormerModel(qformer_config_from_reference(case.shapes, case.config)),
            part(converted, "model.qformer."),
        )
        self.tables = nn.ParameterDict(
            {n: nn.Parameter(converted[convert_name(n)].clone()) for n in QUERY_TABLES if n in case.weights}
        )

    def forward(self, encoder_states: torch.Tensor, **kwargs):
        queries = torch.cat([self.tables[name] for name in QUERY_TABLES if name in self.tables])
        return self.qformer(queries.expand(len(encoder_states), -1, -1), encoder_states, **kwargs)


def text_inputs(case: Case, prefix: str) -> dict[str, torch.Tensor]:
    """An instruction and its mask."""
    return {key: case.inputs[f"{prefix}.{key}"] for key in ("input_ids", "attention_mask")}


def check_qformer_plain(case: Case):
    model = QFormerWithQueries(case)
    states = case.inputs["encoder_hidden_states"]
    outputs = model(states, output_hidden_states=True)
    case.compare("forward", "last_hidden_state", outputs.last_hidden_state, QFORMER)
    for i, hidden_states in enumerate(outputs.hidden_states):
        case.compare("forward", f"hidden{i}", hidden_states, QFORMER)
    if "text.input_ids" in case.inputs:
        text = model(states, **text_inputs(case, "text")).last_hidden_state
        case.compare("forward", "text.last_hidden_state", text, QFORMER)


def module_keys(config: PVChatQFormerConfig) -> list[str]:
    """`layer6.self`, `layer6.cross`, `layer7.self`, ...: the order in which the model returns router logits."""
    return [
        f"layer{i}.{kind}"
        for i in range(config.num_hidden_layers)
        if config.is_routed(i)
        for kind in (("self", "cross") if config.has_cross_attention(i) else ("self",))
    ]


class SparsityStates:
    """The authors' per-module schedules, at their start."""

    def __init__(self, case: Case, config: PVChatQFormerConfig):
        stated = re.search(r"lambda ([\d.e+-]+\d)", case.config.get("moh_state", "lambda 1e-8"))
        coefficient = case.config.get("lambda_init", float(stated[1]) if stated else 1e-8)
        weight = case.config.get("alignment_weight_init", REFERENCE_HAE_WEIGHT_START)
        self.config, self.gain = config, case.config.get("k", SPARSITY_GAIN)
        self.states = {key: ReferenceSparsityState(coefficient, weight) for key in module_keys(config)}

    def advance(self, case: Case, prefix: str, outputs) -> torch.Tensor:
        """Compares gates, alphas and every term of one forward; returns the summed loss."""
        total = torch.zeros(())
        for (key, state), logits, alphas in zip(
            self.states.items(), outputs.router_logits, outputs.alpha_logits, strict=True
        ):
            loss = reference_module_loss(logits, state, self.config.target_sparsity, self.gain)
            total = total + loss.loss
            gates = relu_gates(logits)
            found = {
                "gates": ("gates", gates, GATES),
                "alphas": ("gates", head_alphas(alphas, self.config.alpha_scale), GATES),
                "active_rate": ("rates", loss.activation_rate, EXACT),
                "lambda_after": ("schedule", torch.tensor(state.coefficient), SCHEDULE),
                "align_weight_after": ("schedule", torch.tensor(state.hae_weight), SCHEDULE),
                "spr_unweighted": ("losses", reference_spr_loss(gates), QFORMER),
                "hae_unweighted": ("losses", loss.hae, QFORMER),
                "loss": ("losses", loss.loss, QFORMER),
            }
            for name, (group, ours, allowed) in found.items():
                case.compare(group, f"{prefix}.{key}.{name}", ours, allowed)
        return total


def check_qformer_routed(case: Case):
    """Consecutive passes (the authors' schedules advance), gradients of the first, and a pass with an instruction."""
    model = QFormerWithQueries(case)
    config = model.qformer.config
    passes = [name for name in case.inputs if re.fullmatch(r"encoder_hidden_states\.pass\d+", name)]
    states = SparsityStates(case, config)
    for name in sorted(passes, key=lambda name: int(name.rpartition("pass")[2])):
        prefix = name.rpartition(".")[2]
        outputs = model(case.inputs[name])
        loss = states.advance(case, prefix, outputs)
        case.compare("forward", f"{prefix}.last_hidden_state", outputs.last_hidden_state, QFORMER)
        case.compare("losses", f"{prefix}.lb_loss", loss, QFORMER)
        if prefix == "pass1":
            factor = float(re.search(r"([\d.e+-]+)\*lb_loss", case.config.get("grad_loss", "1e3*lb_loss"))[1])
            queries = outputs.last_hidden_state[:, : case.inputs["probe"].shape[1]]
            ((queries * case.inputs["probe"]).sum() + factor * loss).backward()
            compare_qformer_gradients(case, model)
            model.zero_grad()
    if "text.input_ids" in case.inputs:
        outputs = model(case.inputs["encoder_hidden_states.pass1"], **text_inputs(case, "text"))
        loss = SparsityStates(case, config).advance(case, "text", outputs)
        case.compare("forward", "text.last_hidden_state", outputs.last_hidden_state, QFORMER)
        case.compare("losses", "text.lb_loss", loss, QFORMER)


def compare_qformer_gradients(case: Case, model: QFormerWithQueries):
    gradients = {convert_name(name): table.grad for name, table in model.tables.items()}
    gradients |= {f"model.qformer.{name}": p.grad for name, p in model.qformer.named_parameters()}
    for key in part(case.outputs, "grad."):
        ours = gradients.get(convert_name(key) or "")
        if ours is not None:
            case.compare("gradients", f"grad.{key}", _as_reference(key, ours), GRADIENT)
    if "params_without_grad_no_text" in case.config:
        names = to_reference_names(case.weights)
        without = {names[ours] for ours, gradient in gradients.items() if gradient is None}
        theirs = {f"qformer.{name}" for name in case.config["params_without_grad_no_text"]}
        case.compare_sets("gradients", "params_without_grad_no_text", without, theirs)


def _as_reference(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Query tables regain their leading 1."""
    return tensor[None] if name in QUERY_TABLES else tensor


# -- the whole model --------------------------------------------------------------------------------------------------


def full_model(case: Case, state_dict: dict[str, torch.Tensor], unused_id: int) -> PVChatForConditionalGeneration:
    """The model with `unused_id` as placeholder (the authors mark slots by a mask, with id 0 under it)."""
    config = config_from_reference(case.config, case.weights)
    config.video_token_id = unused_id
    return loaded(PVChatForConditionalGeneration(config), state_dict)


def check_full(case: Case):
    """Forward, losses and gradients with LoRA merged and unmerged, an instruction for the Q-Former, generation."""
    stated = case.config.get("model_config", {}).get("llm", {})
    lora = {"r": stated.get("lora_r", 16), "alpha": stated.get("lora_alpha", 32), **case.config.get("lora", {})}
    rank, alpha = lora["r"], lora["alpha"]
    slots = case.inputs["video_idx"]
    ids = case.inputs["input_ids"].long()
    generated = [tensor for key, tensor in case.outputs.items() if key.startswith("gen.")]
    used = {0, EOS} | {int(i) for tensor in (ids[~slots], *generated) for i in tensor.flatten()}
    unused_id = next(i for i in range(len(used) + 1) if i not in used)
    batch = {
        "input_ids": ids.masked_fill(slots, unused_id),
        "attention_mask": case.inputs["attention_mask"].long(),
        "pixel_values_videos": case.inputs["video"],
    }
    labels = case.inputs["labels"]

    model = full_model(case, convert_state_dict(case.weights, alpha, rank), unused_id)
    config = model.config.qformer_config
    outputs = model(**batch, labels=labels, output_hidden_states=True)
    sparsity = SparsityStates(case, config).advance(case, "fwd", outputs)
    features = model.get_video_features(batch["pixel_values_videos"])
    projected = features.pooler_output.reshape(len(features.last_hidden_state), -1, features.pooler_output.shape[-1])
    case.compare("forward", "qformer_out", features.last_hidden_state, QFORMER)
    case.compare("forward", "project_up_out", projected, MODEL)
    case.compare("forward", "inputs_embeds", outputs.hidden_states[0], MODEL)
    for i, hidden_states in enumerate(outputs.hidden_states):
        case.compare("forward", f"lm_hidden{i}", hidden_states, MODEL)
    case.compare("forward", "logits", outputs.logits, MODEL)
    case.compare("losses", "loss_lm", outputs.loss, MODEL)
    case.compare("losses", "loss_moh", sparsity, MODEL)
    case.compare("losses", "loss_total", outputs.loss + sparsity, MODEL)
    if "instr.input_ids" in case.inputs:
        check_instruction(case, model, batch, labels)
    with torch.no_grad():
        check_generation(case, model, batch, unused_id)
    check_full_gradients(case, batch, labels, unused_id, rank, alpha)


def check_instruction(case: Case, model: PVChatForConditionalGeneration, batch: dict, labels: torch.Tensor):
    """The Q-Former reads an instruction per tile.

    What the shared files keep of routing under `instr.` was recorded in the generation that followed (first sample,
    queries without text, one pass per generated sequence): gates without rows for text are compared as such.
    """
    text = {f"qformer_{key}": value for key, value in text_inputs(case, "instr").items()}
    outputs = model(**batch, **text, labels=labels)
    config = model.config.qformer_config
    recorded = [tensor for key, tensor in case.outputs.items() if re.fullmatch(r"instr\.layer\d+\.self\.gates", key)]
    of_generation = bool(recorded) and recorded[0].shape[1] == model.config.tokens_per_tile
    sparsity = SparsityStates(case, config).advance(case, "" if of_generation else "instr", outputs)
    if of_generation:
        states = SparsityStates(case, config)
        features = model.get_video_features(batch["pixel_values_videos"][:1])
        for last in [False] * (sum(key.startswith("gen.") for key in case.outputs) - 1) + [True]:
            states.advance(case, "instr" if last else "", features)
    case.compare("forward", "instr.logits", outputs.logits, MODEL)
    case.compare("losses", "instr.loss_total", outputs.loss + sparsity, MODEL)


def check_generation(case: Case, model: PVChatForConditionalGeneration, batch: dict, unused_id: int):
    """Greedy from ids and pixels; beams from embeddings, as a beam on its way may hold the placeholder's id."""
    length = int(case.inputs["gen.prompt_len"]) if "gen.prompt_len" in case.inputs else 0
    ids, pixels = batch["input_ids"][:1, :length], batch["pixel_values_videos"][:1]
    limits = [t.shape[1] for key, t in case.outputs.items() if key.startswith("gen.") and int(t[0, -1]) != EOS]
    for key, theirs in case.outputs.items():
        match = re.fullmatch(r"gen\.(?:greedy|beam(\d+))", key)
        if match is None:
            continue
        options = {
            "attention_mask": torch.ones_like(ids),
            "do_sample": False,
            "num_beams": int(match[1] or 1),
            "min_new_tokens": 1,
            "eos_token_id": EOS,
            "pad_token_id": 0,
        }
        if match[1] is None:
            options |= {"input_ids": ids, "pixel_values_videos": pixels}
        else:
            embeds = model.get_input_embeddings()(ids)
            video = model.get_video_features(pixels).pooler_output
            options["inputs_embeds"] = embeds.masked_scatter((ids == unused_id)[..., None], video)
        # A file does not state its limit of new tokens. A sequence without end token gives it away; a beam that ended
        # depends on it, so where nothing gives it away the next few are tried.
        tried = [max(limits)] if limits else range(theirs.shape[1], theirs.shape[1] + 17)
        for limit in tried:
            ours = model.generate(**options, max_new_tokens=limit)
            ours = ours[:, length:] if "input_ids" in options else ours
            if torch.equal(ours, theirs):
                break
        case.compare("ids", key, ours, EXACT)


def check_full_gradients(case: Case, batch: dict, labels: torch.Tensor, unused_id: int, rank: int, alpha: float):
    """Gradients of language-model plus sparsity loss; LoRA runs unmerged in PEFT."""
    if not part(case.outputs, "grad."):
        return
    base, lora = split_lora(case.weights)
    model = full_model(case, base, unused_id)
    prefix = ""
    if lora:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        modules = sorted({re.sub(r"^base_model\.model\.(.+)\.lora_[AB]\.weight$", r"\1", name) for name in lora})
        settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=modules)
        model = get_peft_model(model, settings).eval()
        if set(lora) != {re.sub(r"\.default\.", ".", n) for n, _ in model.named_parameters() if ".lora_" in n}:
            raise ValueError("The LoRA factors do not have the names that PEFT gives them.")
        set_peft_model_state_dict(model, lora)
        prefix = "base_model.model."
    names = {}  # authors' name -> name in the (PEFT) model
    for theirs in case.weights:
        match = re.fullmatch(r"(.+)(\.lora_[AB]\.default\.weight)", theirs)
        ours = convert_name(f"{match[1]}.weight" if match else theirs)
        if ours is not None and theirs not in dead_names(case.weights):
            names[theirs] = f"{prefix}{ours.removesuffix('.weight')}{match[2]}" if match else f"{prefix}{ours}"
    with_gradient = set(case.config.get("grad_names", []))
    without = set(case.config.get("requires_grad_but_none", [])) - set(dead_names(case.weights))
    wanted = {names[name] for name in with_gradient | without | set(part(case.outputs, "grad."))}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted)
    outputs = model(**batch, labels=labels)
    case.compare_values("forward", "logits with LoRA unmerged", outputs.logits, case.outputs["logits"], MODEL)
    sparsity = SparsityStates(case, model.config.qformer_config).advance(case, "", outputs)
    (outputs.loss + sparsity).backward()
    for key in part(case.outputs, "grad."):
        gradient = parameters[names[key]].grad
        if gradient is None:
            case.fail("gradients", f"grad.{key}", "no gradient")
        else:
            case.compare("gradients", f"grad.{key}", _as_reference(key, gradient), GRADIENT)
    if with_gradient:
        reached = {theirs for theirs, ours in names.items() if ours in wanted and parameters[ours].grad is not None}
        case.compare_sets("gradients", "grad_names", reached, with_gradient)


# -- preprocessing and prompts ----------------------------------------------------------------------------------------


def check_preproc(case: Case):
    """Which frames are taken, and what becomes of their pixels."""
    from pvchat.modeling_pvchat.video_processing_pvchat import frame_indices

    for key in case.outputs:
        if match := re.fullmatch(r"get_index\.segments(\d+)", key):
            rows = [frame_indices(int(total), int(match[1])) for total in case.inputs["num_frames"]]
            case.compare("ids", key, torch.tensor(np.stack(rows)), EXACT)
        elif match := re.fullmatch(r"hd_(no_padding|raw)\.res(\d+)(?:\.frame(\d+))?", key):
            clip = case.inputs["clip"]
            clip = clip if match[3] is None else clip[int(match[3]) :][:1]
            raw = match[1] == "raw"
            ours = tiles(clip, int(match[2]), case.config, raw)
            if raw:  # the local tiles put together again, (T, 3, rows * R, columns * R)
                columns, rows = case.config["fix_ratio"]
                ours = ours[0, :-1].unflatten(0, (rows, columns)).permute(2, 3, 0, 4, 1, 5)
                ours = ours.flatten(4, 5).flatten(2, 3)
            case.compare("forward", key, ours, PREPROCESSING)
        elif match := re.fullmatch(r"hd_padding\.res(\d+)\.frame(\d+)", key):
            case.compare("not in the package", key, padded(case, int(match[1]), int(match[2])), PREPROCESSING)
        elif key == "find_closest_aspect_ratio":
            candidates = case.config["candidate_ratios"]
            grids = [closest_aspect_ratio(int(w), int(h), candidates) for w, h in case.inputs["sizes_wh"]]
            case.compare("not in the package", key, torch.tensor(grids), EXACT)


def padded(case: Case, side: int, frame: int) -> torch.Tensor:
    """A frame with bars instead of a squeeze: its tiles and the global view, (1, N, 1, 3, R, R)."""
    image = hd_padding(case.inputs["clip"][frame][None].float(), side)
    mean, std = (torch.tensor(case.config[key]).view(3, 1, 1) for key in ("mean", "std"))
    image = (image / 255.0 - mean) / std
    columns, rows = image.shape[3] // side, image.shape[2] // side
    local = image.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(2, 4, 0, 1, 3, 5).flatten(0, 1)
    whole = nn.functional.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([local, whole[None]])[None]


def tiles(clip: torch.Tensor, side: int, config: dict, raw: bool) -> torch.Tensor:
    """(T, 3, H, W) uint8 -> (1, N, T, 3, R, R) by the video processor, frame by frame so that none is left out."""
    from pvchat.modeling_pvchat.video_processing_pvchat import PVChatVideoProcessor

    processor = PVChatVideoProcessor(
        size=side,
        num_frames=1,
        tile_grid=config["fix_ratio"],
        image_mean=(0.0, 0.0, 0.0) if raw else config["mean"],
        image_std=(1 / 255, 1 / 255, 1 / 255) if raw else config["std"],
        antialias=False,
        clamp=False,
    )
    frames = [processor([frame[None]], return_tensors="pt")["pixel_values_videos"] for frame in clip]
    return torch.cat(frames, dim=2)


def check_prompt_layout(case: Case):
    """Ids, slots and labels of whole prompts, with the toy tokenizer that the file describes."""
    for number, example in enumerate(case.config["examples"]):
        check_prompt(case, number, example)


def check_prompt(case: Case, number: int, example: dict):
    """One example. Where the authors put a file name in the brackets (`<Ye>_short_train`), its tail is cut out: the
    package always writes the name there."""
    from pvchat.modeling_pvchat.processing_pvchat import PVChatProcessor
    from pvchat.modeling_pvchat.video_processing_pvchat import PVChatVideoProcessor

    ids, index, labels = (list(example[key]) for key in ("input_ids", "index", "labels"))
    special = {text: int(i) for text, i in re.findall(r"(\S+)=(\d+)", case.config["note"])}
    name = next(text for text in special if example["sks"].startswith(text))
    num_tiles = example["train_text"].count("<Video>")
    tokenizer = toy_tokenizer(case.config["note"], special, name, example)
    processor = PVChatProcessor(
        video_processor=PVChatVideoProcessor(size=14, num_frames=1),
        tokenizer=tokenizer,
        num_tiles=num_tiles,
        tokens_per_tile=sum(index) // num_tiles,
    )
    tail = example["sks"].removeprefix(name)
    start = example["first_label_position"]
    texts = {key: example[key] for key in ("train_text", "eval_text")}
    if tail:
        opening = [special["[INST]"], *tokenizer.encode("[", add_special_tokens=False), special[name]]
        cut = next(i for i in range(len(ids)) if ids[i : i + 3] == opening) + 3
        for values in (ids, index, labels):
            del values[cut : cut + len(tail)]
        start -= len(tail)
        texts = {key: text.replace(f"[{example['sks']}]", f"[{name}]") for key, text in texts.items()}

    prefix = processor.encode_prefix()
    turn, asked = processor.encode_qa(example["question"], example["answer"], name)
    ours = prefix + turn
    slots = [token == processor.video_token_id for token in ours]
    first = len(prefix) + asked
    padding = [0] * (len(index) - len(ours))
    plain = [0 if slot else token for token, slot in zip(ours, slots, strict=True)]
    case.compare_values("ids", f"{number}.input_ids", torch.tensor(plain), torch.tensor(ids), EXACT)
    case.compare_values(
        "ids", f"{number}.index", torch.tensor([int(slot) for slot in slots] + padding), torch.tensor(index), EXACT
    )
    ours_labels = [-100] * first + ours[first:] + [-100] * (len(labels) - len(ours))
    case.compare_values("ids", f"{number}.labels", torch.tensor(ours_labels), torch.tensor(labels), EXACT)
    case.compare_values("ids", f"{number}.first_label_position", torch.tensor(first), torch.tensor(start), EXACT)
    question = processor.encode_question(example["question"], name)
    for key, written in (("train_text", ours), ("eval_text", prefix + question)):
        slot = "<video>" * processor.tokens_per_tile
        text = "".join(tokenizer.convert_ids_to_tokens([i for i in written if i != tokenizer.bos_token_id]))
        text = text.replace(slot, "[<VID_PLH>]").replace("<sks>", name)
        case.compare_sets("ids", f"{number}.{key}", [text], [texts[key]])


def toy_tokenizer(note: str, special: dict[str, int], name: str, example: dict):
    """Special tokens as in `special`, any other character its code point plus the offset that the note states."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    offset = int(re.search(r"ord\+(\d+)", note)[1])
    texts = "".join(value for value in example.values() if isinstance(value, str))
    vocabulary = {character: ord(character) + offset for character in set(texts)}
    named = {"<unk>": 0, "<s>": int(re.search(r"BOS\((\d+)\)", note)[1]), **special, "<sks>": special[name]}
    named.pop(name)
    named["<video>"] = max(*vocabulary.values(), *named.values()) + 1
    tokenizer = Tokenizer(models.BPE({**vocabulary, **named}, []))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in named])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


# -- listings ---------------------------------------------------------------------------------------------------------


def check_state_dicts(case: Case):
    """Every parameter of each listing has its place and shape in a model of that size, and the other way round."""
    for listing, entries in case.config.items():
        if _is_listing(entries):
            reference = {name: torch.empty(entry["shape"], device="meta") for name, entry in entries.items()}
            config = config_from_reference({}, reference)
            with torch.device("meta"):
                model = PVChatForConditionalGeneration(config)
            ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            converted = {name: tuple(tensor.shape) for name, tensor in convert_state_dict(reference).items()}
            if "personal_query_tokens" not in reference:  # the base model knows no subject
                ours.pop("model.subject_tokens.weight")
            spelled = [[f"{name} {shape}" for name, shape in side.items()] for side in (converted, ours)]
            case.compare_sets("names and shapes", listing, *spelled)


def _is_listing(entries) -> bool:
    return isinstance(entries, dict) and all(
        isinstance(entry, dict) and "shape" in entry and "dtype" in entry for entry in entries.values()
    )


def check_trainability(case: Case):
    """Sizes of the groups that the authors' script trains, at full size; the rest is about their script, not ours."""
    with torch.device("meta"):
        model = PVChatForConditionalGeneration(PVChatConfig())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    qformer = {name: size for name, size in sizes.items() if name.startswith("model.qformer.")}
    routers = {name: size for name, size in qformer.items() if ".head_router." in name}
    text_only = r".+\.(word_embeddings|position_embeddings|intermediate|output)\.(weight|dense|LayerNorm).*"
    of_text = [name for name in qformer if re.fullmatch(text_only, re.sub(r"attention\.output", "attention", name))]
    linear = re.compile(r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
    lora = sum(16 * sum(p.shape) for name, p in model.named_parameters() if linear.fullmatch(name))
    for group in case.config["groups"]:
        what, stated = group["params"], group.get("full_size_params")
        if stated is None:
            case.skip(what, "no size stated: says what the authors' script changes")
            continue
        if "router" in what:
            ours = sum(routers.values())
        elif "lora" in what:
            ours = lora
        else:
            ours = sum(qformer.values()) - sum(routers.values()) - sum(qformer[name] for name in of_text)
        case.compare_values("sizes", what, torch.tensor(ours), torch.tensor(stated), EXACT)


# -- the run ----------------------------------------------------------------------------------------------------------

KINDS: tuple[tuple[Callable[[Case], bool], Callable[[Case], None]], ...] = (
    (lambda c: "video_idx" in c.inputs and "logits" in c.outputs, check_full),
    (lambda c: "probe" in c.inputs and "video" in c.inputs, check_vit_grad),
    (lambda c: "pos_embed" in c.inputs and "targets" in c.config, check_pos_interp),
    (lambda c: any(name.endswith(".x_vis") for name in c.outputs), check_vit),
    (lambda c: "encoder_hidden_states.pass1" in c.inputs, check_qformer_routed),
    (lambda c: "encoder_hidden_states" in c.inputs, check_qformer_plain),
    (lambda c: any(name.startswith("get_index.") for name in c.outputs) or "fix_ratio" in c.config, check_preproc),
    (lambda c: bool(c.config.get("examples")) and "input_ids" in c.config["examples"][0], check_prompt_layout),
    (lambda c: "groups" in c.config and "optimizer" in c.config, check_trainability),
    (lambda c: any(_is_listing(entries) for entries in c.config.values() if entries), check_state_dicts),
)


def read_case(path: Path) -> Case:
    """A golden file, or a JSON file that stands alone.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    if path.suffix == ".json":
        config = json.loads(path.read_text(encoding="utf-8"))
        return Case(path.stem, config if isinstance(config, dict) else {})
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file, or cut off ({error})") from error
    beside = path.with_suffix(".json")
    meta = json.loads(header["meta"]) if "meta" in header else read_case(beside).config if beside.exists() else {}
    return Case(
        path.stem,
        meta.get("config", {}),
        part(tensors, "weights."),
        part(tensors, "input."),
        part(tensors, "output."),
    )


def check(case: Case) -> bool:
    """Fills `case.results`; `False` if the file is of no known kind."""
    run = next((run for recognises, run in KINDS if recognises(case)), None)
    if run is None:
        return False
    try:
        run(case)
    except Exception as error:  # one bad file must not hide the others
        case.fail("all", "(whole file)", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        for key in case.outputs.keys() - case.settled:
            case.fail("all", key, "not compared: this runner does not know the quantity")
    return True


def check_folder(folder: Path) -> tuple[list[Result], list[str]]:
    """All results, and the files that are of no known kind.

    Raises:
        OSError: the folder does not exist or cannot be read.
    """
    files = sorted(folder.iterdir())
    tensors = {path.stem for path in files if path.suffix == ".safetensors"}
    results: list[Result] = []
    unknown = []
    for path in files:
        if path.suffix != ".safetensors" and (path.suffix != ".json" or path.stem in tensors):
            continue
        try:
            case = read_case(path)
        except (OSError, ValueError) as error:
            results.append(Result(path.stem, "all", "(whole file)", "fail", note=f"cannot be read: {error}"))
            continue
        if check(case):
            results += case.results
        else:
            unknown.append(path.name)
    return results, unknown


def lines(results: Sequence[Result]) -> list[str]:
    """One line per file and group with the worst error, and one per failed or skipped quantity."""
    text = []
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case, result.group), []).append(result)
    for (case, group), members in groups.items():
        head = f"{case:24} {group:18}"
        measured = [member for member in members if member.error is not None]
        failed = [member for member in members if member.status == "fail"]
        if measured:
            worst = max(measured, key=lambda m: m.error / m.allowed if m.allowed else m.error * 1e9)
            text.append(
                f"{'FAIL' if failed else 'ok':5}{head} {len(members):4} compared  error {worst.error:8.2e}  "
                f"allowed {worst.allowed:7.1e}  worst: {worst.quantity}"
            )
        for member in members:
            if member.status == "skip":
                text.append(f"skip {head}      {member.quantity}: {member.note}")
            elif member.status == "fail":
                detail = member.note or f"error {member.error:.2e}, allowed {member.allowed:.1e}"
                text.append(f"FAIL {head}      {member.quantity}: {detail}")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden", description="Compares the package with golden vectors of the authors' code."
    )
    parser.add_argument("folder", type=Path, help="folder of golden files (*.safetensors, *.json), of any size")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
    try:
        results, unknown = check_folder(options.folder)
    except OSError as error:
        print(f"{options.folder} cannot be read: {error.strerror}.", file=sys.stderr)
        return 2
    if not results:
        print(f"{options.folder} holds no golden files (*.safetensors with input.* and output.*).", file=sys.stderr)
        return 2
    passed = all(result.status != "fail" for result in results)
    if options.json:
        print(
            json.dumps(
                {
                    "folder": str(options.folder),
                    "passed": passed,
                    "unknown_files": unknown,
                    "checks": [asdict(result) for result in results],
                }
            )
        )
        return 0 if passed else 1
    print("\n".join(lines(results)))
    for name in unknown:
        print(f"skip {name}: of no known kind")
    counts = {status: sum(result.status == status for result in results) for status in ("ok", "fail", "skip")}
    print(f"{counts['ok']} within tolerance, {counts['fail']} failed, {counts['skip']} skipped")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
