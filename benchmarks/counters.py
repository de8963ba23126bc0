"""Counters of FLOPs, bytes and time."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}


def clock() -> float:
    """Seconds, when all that was started is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad_out, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


# PyTorch's counter knows the attention kernels of GPUs only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of matrix products, convolutions and attention inside `function`, recomputation included.

    A multiplication and an addition are two. Not counted: what works on one element at a time (norms, activations,
    softmax outside of fused attention, dropout, rotary positions, the optimiser) and embedding look-ups.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with counter:
        function()
    return counter.get_total_flops()


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most there were, on any device, also of tensors without data.

    Counts a storage when an operator first returns a tensor on it, and until nothing holds it.

    Args:
        known: tensors that exist before, such as weights.
    """

    def __init__(self, known=()):
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}
        for tensor in known:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen and self._seen[key]() is storage:
            return
        size = storage.nbytes()

        def gone(_, key=key, size=size):
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return output


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The optimiser's states."""
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages of these tensors, each counted once."""
    storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def operator_shares(function: Callable[[], Any]) -> dict[str, float]:
    """Shares of the time of `function` (on a GPU: of its kernels) in matrix products, attention, and all else."""
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
        function()
    shares = {"matrix products": 0.0, "attention": 0.0, "the rest": 0.0}
    for event in recorded.key_averages():
        name = event.key.lower()
        if any(word in name for word in ("attention", "flash", "fmha")):
            kind = "attention"
        elif any(word in name for word in ("mm", "gemm", "convolution")):
            kind = "matrix products"
        else:
            kind = "the rest"
        shares[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: round(value / total, 3) for kind, value in shares.items()}


def matmul_rate(device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of a product of two large square matrices: the best of a few."""
    side = MATMUL_SIDE[device]
    a = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        start = clock()
        a @ a
        best = min(best, clock() - start)
    return 2 * side**3 / best
