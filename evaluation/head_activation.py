"""Which routed heads of the Q-Former fire on the subject tokens, with the subject in the clip and without.

The paper's figure of head activations, as numbers: for every routed attention and head, the share of (clip, tile,
subject token) for which its gate is open, once over the clips of a split that show the subject and once over those
that do not. Whether the two maps differ by more than clips of one kind differ among themselves is answered by
shuffling the labels of the clips.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import PVChatError
from ..files import write_json
from ..session import VIDEOS_AT_ONCE

FILE = "head_activation.json"
SHUFFLES = 1000


def write_head_activation(chat, dataset, out: str | Path, *, split: str = "test", seed: int = 0) -> dict[str, Any]:
    """Computes the maps and writes them as `head_activation.json` into `out`.

    Args:
        chat: a `VideoChat`.
        dataset: a `LocalDataset`.
        seed: of the shuffles.

    Returns:
        `missing`, the reason, and `rate` for a model without routers (rate None) or without subject tokens, else
        rows        per routed attention: `layer` (from 0) and `attention`, "self" or "cross"
        heads       index of each routed head within its attention
        target      share of routed heads that should be on
        rate        share that is on, over all tokens and clips
        present, absent
                    `clips`, and `active`: shares per row and head; None without such a clip
        difference  present minus absent per row and head, its mean size, and the mean size (`by_chance`) and share of
                    shuffles that reach it (`p`) when the labels of the clips are shuffled; None if a side is missing

    Raises:
        PVChatError: a clip cannot be read.
    """
    result = head_activation(chat, dataset, split=split, seed=seed)
    write_json(Path(out) / FILE, result)
    return result


def head_activation(chat, dataset, *, split: str = "test", seed: int = 0) -> dict[str, Any]:
    """As `write_head_activation`, without the file."""
    net = chat.model.get_base_model() if hasattr(chat.model, "get_base_model") else chat.model
    config = net.config.qformer_config
    if config.routing == "none":
        return {"missing": "the Q-Former of this model has no routed heads", "rate": None}
    videos = dataset.split(split)
    active, rate = active_shares(net, chat.processor, [video.path for video in videos])
    if not net.config.num_subject_tokens:
        return {"missing": "this model has no subject tokens", "rate": rate}
    present = np.array([video.subject_present for video in videos], bool)
    return {
        "rows": routed_attentions(config),
        "heads": list(range(config.num_shared_heads, config.num_attention_heads)),
        "target": 1.0 - config.target_sparsity,
        "rate": rate,
        "present": _side(active[present]),
        "absent": _side(active[~present]),
        "difference": difference(active, present, seed),
    }


def read_head_activation(folder: str | Path) -> dict[str, Any]:
    """What `write_head_activation` wrote; without the file, `missing` says so."""
    try:
        return json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"missing": "they were not computed in this evaluation"}


def in_words(activation: dict[str, Any], subject: str) -> str:
    """What the maps say, in two sentences."""
    if "missing" in activation:
        return f"No maps: {activation['missing']}."
    found = activation["difference"]
    if found is None:
        return f"No maps: the clips are all with, or all without {subject}."
    present, absent = (np.array(activation[side]["active"]) for side in ("present", "absent"))
    row, head = np.unravel_index(np.abs(present - absent).argmax(), present.shape)
    place = "layer {layer} ({attention}-attention)".format(**activation["rows"][row])
    verdict = (
        f"the routing depends on whether {subject} is there"
        if found["p"] < 0.05
        else f"no sign that the routing depends on whether {subject} is there"
    )
    return (
        f"A routed head is on for {present.mean():.0%} of the subject tokens where {subject} is in the clip and for "
        f"{absent.mean():.0%} where not; most different is head {activation['heads'][head]} of {place}, "
        f"{present[row, head]:.0%} against {absent[row, head]:.0%}. The maps differ by {found['mean_size']:.3f} on "
        f"average, and by {found['by_chance']:.3f} when the labels of the clips are shuffled (p = {found['p']:.3f}): "
        f"{verdict}."
    )


def routed_attentions(config) -> list[dict[str, Any]]:
    """Layer and kind of every routed attention, in the order of the model's `router_logits`."""
    rows = []
    for layer in range(config.num_hidden_layers):
        if config.is_routed(layer):
            kinds = ("self", "cross") if config.has_cross_attention(layer) else ("self",)
            rows += [{"layer": layer, "attention": kind} for kind in kinds]
    return rows


@torch.inference_mode()
def active_shares(net, processor, clips: Sequence[str | Path]) -> tuple[np.ndarray, float]:
    """Shares of open gates on the subject tokens, (clips, routed attentions, routed heads), and over all tokens.

    The former are NaN for a model without subject tokens.

    Args:
        net: a `PVChatForConditionalGeneration` with routers, in evaluation mode, its adapter switched on.
    """
    config = net.config.qformer_config
    shares, rates = [], []
    for start in range(0, len(clips), VIDEOS_AT_ONCE):
        batch = [str(clip) for clip in clips[start : start + VIDEOS_AT_ONCE]]
        try:
            pixels = processor.video_processor(videos=batch, return_tensors="pt")["pixel_values_videos"]
        except ValueError as error:
            raise PVChatError(str(error)) from error
        features = net.model.get_video_features(pixels.to(net.device))
        logits = torch.stack(features.router_logits, dim=1)  # (V*N, A, Q, R)
        if config.routing == "remoh":
            on = logits > 0
        else:
            on = torch.zeros_like(logits, dtype=torch.bool)
            on.scatter_(-1, logits.topk(config.num_active_heads, dim=-1).indices, True)
        on = on.float().unflatten(0, (len(batch), -1))  # (V, N, A, Q, R)
        rates += on.mean(dim=(1, 2, 3, 4)).tolist()
        first = on.shape[3] - net.config.num_subject_tokens
        shares.append(on[..., first:, :].mean(dim=(1, 3)).cpu().numpy())
    return np.concatenate(shares), float(np.mean(rates))


def difference(active: np.ndarray, present: np.ndarray, seed: int = 0) -> dict[str, Any] | None:
    """Present minus absent of (clips, A, R) shares, and how large it would be if the labels meant nothing."""
    if present.all() or not present.any():
        return None
    rng = np.random.default_rng(seed)
    found = _contrast(active, present)
    size = float(np.abs(found).mean())
    shuffled = [float(np.abs(_contrast(active, rng.permutation(present))).mean()) for _ in range(SHUFFLES)]
    reached = sum(value >= size for value in shuffled)
    return {
        "active": found.tolist(),
        "mean_size": size,
        "by_chance": float(np.mean(shuffled)),
        "p": (reached + 1) / (SHUFFLES + 1),
    }


def _contrast(active: np.ndarray, present: np.ndarray) -> np.ndarray:
    return active[present].mean(axis=0) - active[~present].mean(axis=0)


def _side(active: np.ndarray) -> dict[str, Any] | None:
    return {"clips": len(active), "active": active.mean(axis=0).tolist()} if len(active) else None
