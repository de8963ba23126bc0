"""Losses and gates of the routed heads: properties that hold for any router logits, and what they do in training."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pvchat.modeling_pvchat.modeling_qformer import head_alphas, relu_gates, top_k_gates
from pvchat.modeling_pvchat.sparsity import (
    ReferenceSparsityState,
    activation_rate,
    hae_loss,
    moh_load_balance_loss,
    next_spr_coefficient,
    reference_module_loss,
    reference_spr_loss,
    spr_loss,
)

few = settings(max_examples=40, deadline=None, derandomize=True)
targets = st.sampled_from([0.25, 0.5, 0.75])


@st.composite
def logits(draw, modules: int | None = None) -> tuple[torch.Tensor, ...]:
    """Router logits of one to three modules, (B, T, R), from all silent to all on."""
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(2, 5))]
    seeds = st.integers(0, 2**31 - 1)
    scale, shift = draw(st.floats(0.01, 8.0)), draw(st.floats(-10.0, 10.0))
    return tuple(
        scale * torch.randn(shape, generator=torch.Generator().manual_seed(draw(seeds))) + shift
        for _ in range(modules or draw(st.integers(1, 3)))
    )


def leaves(router_logits: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.clone().requires_grad_() for tensor in router_logits)


# -- gates ------------------------------------------------------------------------------------------------------------


@few
@given(logits(modules=1))
def test_relu_gates_lie_between_0_and_10_and_are_on_where_logits_are_positive(router_logits):
    (scores,) = router_logits
    gates = relu_gates(scores)
    assert gates.min() >= 0 and gates.max() <= 10
    assert torch.equal(gates > 0, scores > 0)
    small = scores.abs() <= 1
    assert torch.equal(gates[small], scores.clamp(min=0)[small])


@few
@given(logits(modules=1), st.integers(1, 2))
def test_top_k_gates_switch_on_the_k_largest_and_sum_to_k(router_logits, k):
    (scores,) = router_logits
    gates = top_k_gates(scores, k)
    torch.testing.assert_close(gates.sum(-1), torch.full(gates.shape[:-1], float(k)))
    smallest_on = scores.masked_fill(gates == 0, math.inf).amin(-1)
    largest_off = scores.masked_fill(gates > 0, -math.inf).amax(-1)
    assert (smallest_on >= largest_off).all()


@few
@given(logits(modules=1), st.sampled_from([1.0, 2.0]))
def test_alphas_sum_to_their_scale_and_neither_vanishes(router_logits, scale):
    alphas = head_alphas(router_logits[0][..., :2], scale)
    torch.testing.assert_close(alphas.sum(-1), torch.full(alphas.shape[:-1], scale))
    assert (alphas >= 0.119 * scale).all() and (alphas <= 0.881 * scale).all()


# -- the paper's losses -----------------------------------------------------------------------------------------------


@few
@given(logits())
def test_activation_rate_is_the_share_of_positive_logits(router_logits):
    tensors = leaves(router_logits)
    rate = activation_rate(tensors)
    assert not rate.requires_grad
    expected = sum(int((t > 0).sum()) / t.numel() for t in router_logits) / len(router_logits)
    assert float(rate) == pytest.approx(expected, abs=1e-6)


@few
@given(logits(), st.floats(-3.0, 3.0))
def test_spr_is_a_norm_it_scales_and_never_falls_below_zero(router_logits, factor):
    loss = spr_loss(router_logits)
    assert loss >= 0
    torch.testing.assert_close(
        spr_loss(tuple(factor * t for t in router_logits)), abs(factor) * loss, atol=1e-5, rtol=1e-4
    )
    balanced = tuple(torch.cat([t, -t], dim=1) for t in router_logits)
    torch.testing.assert_close(spr_loss(balanced), torch.zeros(()), atol=1e-5, rtol=0)


@few
@given(logits())
def test_spr_gradient_pulls_the_mean_score_of_every_head_towards_zero(router_logits):
    tensors = leaves(router_logits)
    spr_loss(tensors).backward()
    for tensor in tensors:
        mean = tensor.detach().mean(dim=(0, 1))
        assert (mean * tensor.grad.sum(dim=(0, 1)) >= 0).all()


@few
@given(logits(), targets)
def test_hae_has_the_papers_value(router_logits, target):
    expected = 0.0
    for tensor in router_logits:
        sparsity = 1.0 - int((tensor > 0).sum()) / tensor.numel()
        expected += max(math.expm1(2 * (sparsity - target)), 0.0) / len(router_logits)
    assert float(hae_loss(router_logits, target)) == pytest.approx(expected, abs=1e-5)


@few
@given(logits(), targets)
def test_hae_gradient_switches_heads_on_where_too_many_are_silent_and_is_zero_elsewhere(router_logits, target):
    tensors = leaves(router_logits)
    hae_loss(tensors, target).backward()
    for tensor in tensors:
        sparsity = 1.0 - float((tensor > 0).float().mean())
        assert (tensor.grad <= 0).all()  # a step against it raises logits
        if sparsity < target - 1e-6:
            assert (tensor.grad == 0).all()
        near = (tensor.detach().abs() < 0.5).any()
        if sparsity > target + 1e-6 and near:
            assert tensor.grad.abs().max() > 0


def test_hae_wakes_silent_heads_where_the_reference_cannot():
    silent = torch.full((2, 5, 4), -0.05)
    (ours,) = leaves((silent,))
    hae_loss((ours,), 0.5).backward()
    (theirs,) = leaves((silent,))
    loss = reference_module_loss(theirs, ReferenceSparsityState(1e-8)).loss
    assert loss.item() == pytest.approx(0.6 * math.expm1(1.0))  # the value is there
    loss.backward()
    assert (ours.grad < 0).all()
    assert (theirs.grad == 0).all()


@few
@given(st.floats(1e-6, 5.0), st.floats(0.0, 1.0), targets)
def test_spr_coefficient_grows_while_too_many_heads_are_on(coefficient, sparsity, target):
    following = next_spr_coefficient(coefficient, target, sparsity)
    assert (following > coefficient) == (math.exp(0.8 * (target - sparsity)) > 1.0)
    assert next_spr_coefficient(coefficient, target, target) == coefficient
    twice = next_spr_coefficient(following, target, sparsity)
    assert twice == pytest.approx(coefficient * math.exp(1.6 * (target - sparsity)))


@few
@given(logits(), st.integers(1, 2))
def test_moh_balance_loss_is_positive_and_at_most_the_number_of_heads(router_logits, k):
    heads = router_logits[0].shape[-1]
    assert 0 < float(moh_load_balance_loss(router_logits, k)) <= heads + 1e-5


def test_moh_balance_loss_is_one_when_balanced_and_grows_when_one_head_takes_all():
    balanced = 3.0 * torch.eye(4)[None]
    collapsed = 3.0 * torch.eye(4)[:1].expand(4, 4)[None]
    assert float(moh_load_balance_loss((balanced,), 1)) == pytest.approx(1.0)
    assert float(moh_load_balance_loss((collapsed,), 1)) > 2.0


@few
@given(logits(), targets)
def test_losses_do_not_depend_on_the_order_of_tokens_and_are_float32(router_logits, target):
    order = torch.arange(router_logits[0].shape[1]).flip(0)
    shuffled = tuple(t[:, order] for t in router_logits)
    for loss in (spr_loss, lambda x: hae_loss(x, target), lambda x: moh_load_balance_loss(x, 1), activation_rate):
        torch.testing.assert_close(loss(router_logits), loss(shuffled), atol=1e-5, rtol=1e-5)
        assert loss(tuple(t.bfloat16() for t in router_logits)).dtype == torch.float32


# -- the authors' losses ----------------------------------------------------------------------------------------------


@few
@given(logits(modules=1))
def test_reference_spr_weights_mean_gates_by_how_often_they_are_on(router_logits):
    gates = relu_gates(router_logits[0])
    expected = sum(
        float((gates[..., j] > 0).float().mean()) * float(gates[..., j].mean()) for j in range(gates.shape[-1])
    )
    assert float(reference_spr_loss(gates)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@few
@given(logits(modules=1), st.floats(1e-12, 9.0), targets)
def test_reference_schedule_moves_before_use_and_stays_in_range(router_logits, coefficient, target):
    state = ReferenceSparsityState(coefficient)
    result = reference_module_loss(router_logits[0], state, target)
    moved = coefficient * math.exp(0.8 * (target - (1.0 - float(result.activation_rate))))
    assert state.coefficient == pytest.approx(min(max(moved, 1e-15), 10.0))
    expected = state.coefficient * float(result.spr) + state.hae_weight * float(result.hae)
    assert float(result.loss) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_reference_hae_weight_grows_to_ten_while_all_heads_are_silent_and_falls_back_at_once():
    state = ReferenceSparsityState(1e-8)
    silent, awake = torch.full((1, 3, 4), -1.0), torch.ones(1, 3, 4)
    weights = []
    for _ in range(20):
        reference_module_loss(silent, state)
        weights.append(state.hae_weight)
    assert weights[:3] == pytest.approx([0.6, 0.72, 0.864])
    assert weights[-1] == 10.0
    reference_module_loss(awake, state)
    assert state.hae_weight == 0.5


@few
@given(logits(modules=1))
def test_reference_gradient_comes_from_the_gates_that_are_on_only(router_logits):
    (scores,) = leaves(router_logits)
    reference_module_loss(scores, ReferenceSparsityState(1.0)).loss.backward()
    on = (scores > 0) & (scores < 10)
    assert (scores.grad[scores <= 0] == 0).all()
    assert (scores.grad[on] > 0).all()


# -- in training ------------------------------------------------------------------------------------------------------


def train_toy_router(bias: float, target_sparsity: float, adaptive: bool = True, steps: int = 200) -> float:
    """Share of heads that are on after training a router that its task wants wide open; mean of the last 50 steps."""
    torch.manual_seed(0)
    tokens = torch.randn(4, 50, 16)
    router = nn.Linear(16, 4)
    nn.init.constant_(router.bias, bias)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
    coefficient, rates = 1e-2, []
    for _ in range(steps):
        router_logits = (router(tokens),)
        rate = float(activation_rate(router_logits))
        task = -0.1 * relu_gates(router_logits[0]).mean()
        loss = task + coefficient * spr_loss(router_logits) + hae_loss(router_logits, target_sparsity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if adaptive:
            coefficient = next_spr_coefficient(coefficient, target_sparsity, 1.0 - rate)
        rates.append(rate)
    return sum(rates[-50:]) / 50


@pytest.mark.parametrize("bias", [1.0, -1.0])
def test_spr_and_hae_drive_the_activation_rate_to_the_target(bias):
    assert train_toy_router(bias, 0.5) == pytest.approx(0.5, abs=0.1)


def test_a_lower_target_sparsity_leaves_more_heads_on():
    assert train_toy_router(1.0, 0.25) == pytest.approx(0.75, abs=0.06)


def test_without_the_adaptive_coefficient_the_task_wins():
    assert train_toy_router(1.0, 0.5, adaptive=False) > 0.7
