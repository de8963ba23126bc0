"""The losses that keep about half of the routed heads on, with the state they need.

The functions are in `modeling_pvchat.sparsity`; here lives beta, which grows while too many heads are on and shrinks
while too few are. It is trainer state: moved once per optimiser step, from the mean over micro-batches and ranks,
never in evaluation, and part of every checkpoint.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..modeling_pvchat.sparsity import (
    REFERENCE_COEFFICIENT_RANGE,
    ReferenceSparsityState,
    activation_rate,
    hae_loss,
    moh_load_balance_loss,
    next_spr_coefficient,
    reference_module_loss,
    spr_loss,
)


@dataclass(frozen=True)
class SparsityTerms:
    """What one batch contributes: `loss` (weighted, with gradient), and its parts as detached float32 scalars.

    `spr` is without its coefficient. `active_heads` is the share of routed heads that are on.
    """

    loss: torch.Tensor
    spr: torch.Tensor
    hae: torch.Tensor
    active_heads: torch.Tensor


def quantile_spr_loss(router_logits: tuple[torch.Tensor, ...], target_sparsity: float) -> torch.Tensor:
    """The paper's SPR with another centre: the norm of the `T_s`-quantile of the router scores instead of their mean.

    The paper's `|| (1/n) W_r x ||` pulls the mean score of every head to zero, which leaves on whatever share of the
    tokens scores above the mean: about one half, wherever the target is (measured on the embedded base with a target
    of 0.25 active heads: 0.50 with the mean, 0.27 with the quantile). The `T_s`-quantile is zero exactly when a head
    is silent for `T_s` of the tokens. As in the paper, the gradient shifts all scores of a head alike. Mean over
    modules; without coefficient.

    Args:
        router_logits: one (B, Q, R) per routed attention.
    """
    losses = []
    for logits in router_logits:
        scores = logits.float().flatten(0, 1)  # (B * Q, R)
        mean = scores.mean(dim=0)
        centre = scores.detach().quantile(target_sparsity, dim=0)
        losses.append((mean + (centre - mean).detach()).norm())
    return torch.stack(losses).mean()


class SparsityController:
    """Computes SPR and HAE (or MoH's balance loss) and moves their coefficient.

    Args:
        config: the stage's `PVChatTrainingConfig`.
        qformer: the Q-Former's config (routing and target).
    """

    def __init__(self, config, qformer):
        self.config = config
        self.routing = qformer.routing
        self.num_active_heads = qformer.num_active_heads
        self.target = qformer.target_sparsity
        self.beta = config.spr_start
        self.modules: list[ReferenceSparsityState] = []  # `spr_variant="reference"`: one schedule per module
        self._rates: list[torch.Tensor] = []

    def terms(self, router_logits: tuple[torch.Tensor, ...], training: bool) -> SparsityTerms:
        """Losses of a batch; in training, also notes its activation rate for the next `step`.

        Args:
            router_logits: as the model returns them, one (B, Q, R) per routed attention.
        """
        config = self.config
        rate = activation_rate(router_logits)
        zero = rate.new_zeros(())
        if self.routing == "moh":
            balance = moh_load_balance_loss(router_logits, self.num_active_heads)
            active = rate.new_tensor(1.0 - self.target)  # top-k: always on target
            return SparsityTerms(config.balance_weight * balance, zero, zero, active)
        if training:
            self._rates.append(rate)
        if config.spr_variant == "reference":
            return self._reference_terms(router_logits, rate, training)
        if not config.spr:
            spr = zero
        elif config.spr_variant == "quantile":
            spr = quantile_spr_loss(router_logits, self.target)
        else:
            spr = spr_loss(router_logits)
        hae = hae_loss(router_logits, self.target) if config.hae else zero
        return SparsityTerms(config.sparsity_weight * (self.beta * spr + hae), spr.detach(), hae.detach(), rate)

    def _reference_terms(self, router_logits, rate: torch.Tensor, training: bool) -> SparsityTerms:
        """As the authors' code: one schedule per module, moved before use in every training forward."""
        states = copy.deepcopy(self.modules) or [ReferenceSparsityState(self.config.spr_start) for _ in router_logits]
        parts = [
            reference_module_loss(logits, state, self.target, self.config.sparsity_gain)
            for logits, state in zip(router_logits, states, strict=True)
        ]
        if training:
            self.modules = states
        loss, spr, hae = rate.new_zeros(()), rate.new_zeros(()), rate.new_zeros(())
        for part, state in zip(parts, states, strict=True):
            if self.config.spr:
                loss = loss + state.coefficient * part.spr
            if self.config.hae:
                loss = loss + state.hae_weight * part.hae
            spr, hae = spr + part.spr.detach(), hae + part.hae.detach()
        return SparsityTerms(self.config.sparsity_weight * loss, spr, hae, rate)

    def step(self, all_rank_mean) -> None:
        """After an optimiser step: moves beta by the mean activation rate since the last one.

        Args:
            all_rank_mean: function from a scalar tensor to its mean over ranks.
        """
        if not self._rates:
            return
        sparsity = 1.0 - float(all_rank_mean(torch.stack(self._rates).mean()))
        self._rates.clear()
        low, high = REFERENCE_COEFFICIENT_RANGE[0], self.config.spr_max
        beta = next_spr_coefficient(self.beta, self.target, sparsity, self.config.sparsity_gain)
        self.beta = min(max(beta, low), high)

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self.beta, "modules": [asdict(state) for state in self.modules]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.beta = state["beta"]
        self.modules = [ReferenceSparsityState(**module) for module in state["modules"]]
