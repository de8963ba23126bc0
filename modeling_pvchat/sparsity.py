"""Sparsity losses of routed heads, as pure functions of the router logits.

`router_logits` is the tuple that the model returns: one (B, T, R) tensor of `W_r x + b` per routed attention.
Equations are those of PVChat (ICCV 2025), section 3.3; the `reference_*` functions compute what the authors' code
computes, which differs (see each docstring). All results are float32 scalars.
"""

import math
from dataclasses import dataclass

import torch

from .modeling_qformer import relu_gates

SPARSITY_GAIN = 0.8
REFERENCE_COEFFICIENT_RANGE = (1e-15, 10.0)
REFERENCE_HAE_WEIGHT_START = 0.5
REFERENCE_HAE_WEIGHT_MAX = 10.0


def activation_rate(router_logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Share of routed heads that are on, mean over modules, tokens and heads; no gradient. 1 - R_s of the paper."""
    return torch.stack([(logits > 0).float().mean() for logits in router_logits]).mean()


def spr_loss(router_logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Smooth proximity regularisation without its coefficient: the norm of the mean router score, mean over modules.

    `L_spr = beta_p * || (1/n) sum_t W_r x_t ||_2`, n tokens; the caller multiplies by `beta_p`.
    """
    return torch.stack([logits.float().mean(dim=(0, 1)).norm() for logits in router_logits]).mean()


def hae_loss(
    router_logits: tuple[torch.Tensor, ...], target_sparsity: float, temperature: float = 0.1
) -> torch.Tensor:
    """Head activation enhancement: `exp(2 (R_s - T_s)) - 1` where the sparsity R_s exceeds its target, else 0.

    Mean over modules. R_s counts silent heads and has no gradient; here the count is exact in the value and a sigmoid
    of `logits / temperature` in the gradient (straight-through), so that the loss can wake heads. (The authors' code
    takes the count from a boolean mask: its gradient is zero.)
    """
    losses = []
    for logits in router_logits:
        soft = torch.sigmoid(logits.float() / temperature)
        active = (logits > 0).float() + soft - soft.detach()
        excess = (1.0 - active.mean() - target_sparsity).clamp(min=0.0)
        losses.append(torch.exp(2.0 * excess) - 1.0)
    return torch.stack(losses).mean()


def next_spr_coefficient(
    coefficient: float, target_sparsity: float, sparsity: float, gain: float = SPARSITY_GAIN
) -> float:
    """`beta_{p+1} = beta_p exp(k (T_s - R_s))`: grows while too many heads are on, shrinks while too few are."""
    return coefficient * math.exp(gain * (target_sparsity - sparsity))


def moh_load_balance_loss(router_logits: tuple[torch.Tensor, ...], k: int) -> torch.Tensor:
    """MoH's balance loss: `R * sum_i f_i P_i`, f the share of tokens whose top-k holds head i, P its mean softmax."""
    losses = []
    for logits in router_logits:
        weights = logits.float().softmax(dim=-1).flatten(0, -2)
        chosen = torch.zeros_like(weights).scatter(-1, weights.topk(k, dim=-1).indices, 1.0)
        losses.append(weights.shape[-1] * (chosen.mean(0) / k * weights.mean(0)).sum())
    return torch.stack(losses).mean()


@dataclass
class ReferenceSparsityState:
    """Per-module schedule of the authors' code, advanced by every forward: coefficient `lambda`, HAE weight `w`."""

    coefficient: float
    hae_weight: float = REFERENCE_HAE_WEIGHT_START


@dataclass(frozen=True)
class ReferenceSparsity:
    """What the authors' code computes for one routed attention in one forward."""

    loss: torch.Tensor
    spr: torch.Tensor
    hae: torch.Tensor
    activation_rate: torch.Tensor


def reference_spr_loss(gates: torch.Tensor) -> torch.Tensor:
    """The authors' SPR without coefficient: `sum_j f_j mean(g_j)`, f_j the share of active tokens, no gradient in f.

    Differs from the paper: it acts on the gates after ReLU and weights each head by its activity (as ReMoE does).
    """
    gates = gates.float()
    frequency = (gates > 0).float().mean(dim=(0, 1))
    return (frequency * gates.mean(dim=(0, 1))).sum()


def reference_module_loss(
    router_logits: torch.Tensor,
    state: ReferenceSparsityState,
    target_sparsity: float = 0.5,
    gain: float = SPARSITY_GAIN,
) -> ReferenceSparsity:
    """Loss of one routed attention as the authors code it; advances `state` in place.

    Differs from the paper: the coefficient is updated before use and clamped, every module has its own, and HAE is
    `w (exp(2 (R - T)) - 1)` with a weight that grows by 1.2 while all heads are silent and zero gradient throughout.
    """
    gates = relu_gates(router_logits).float()
    rate = (gates > 0).float().mean()
    sparsity = 1.0 - float(rate)
    low, high = REFERENCE_COEFFICIENT_RANGE
    state.coefficient = min(max(next_spr_coefficient(state.coefficient, target_sparsity, sparsity, gain), low), high)
    spr = reference_spr_loss(gates)
    silent = float(rate) < 1e-4
    state.hae_weight = min(1.2 * state.hae_weight, REFERENCE_HAE_WEIGHT_MAX) if silent else REFERENCE_HAE_WEIGHT_START
    # The exponent in float64 and the power in float32: the order that gives the authors' numbers to the bit.
    hae = (torch.exp(rate.new_tensor(2.0 * (sparsity - target_sparsity))) - 1.0).clamp(min=0.0)
    return ReferenceSparsity(state.coefficient * spr + state.hae_weight * hae, spr, hae, rate)
