"""Training in several processes (`accelerate launch`) with the result of one.

Each process takes its share of every batch. Two things would make the result depend on how many there are:

- The last batch of an epoch rarely has a row for everyone. accelerate repeats rows of the first batch, which then
  count twice; here blank rows, a video without questions, fill it up.
- The losses on head routers are norms and rates over the whole batch, and no means of what they are for its parts. So
  the router scores of all rows are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler


class FullBatches(BatchSampler):
    """The batches of another sampler, all of its batch size and as many for each process.

    Args:
        batches: the sampler of all processes together.
        blank: index of the row that fills up what is missing.
        processes: how many share the batches.
    """

    def __init__(self, batches: BatchSampler, blank: int, processes: int):
        self.batches, self.blank, self.processes = batches, blank, processes
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last
        self.sampler = batches.sampler  # accelerate tells it the epoch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [*batch, *[self.blank] * (self.batch_size - len(batch))]
        for _ in range(len(self) - len(self.batches)):
            yield [self.blank] * self.batch_size

    def __len__(self) -> int:
        return -(-len(self.batches) // self.processes) * self.processes


def blank_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of `training_rows` that asks nothing."""
    return rows[0] | {"qa": []}


def of_all_processes(
    router_logits: tuple[torch.Tensor, ...], asked: torch.Tensor, accelerator
) -> tuple[torch.Tensor, ...]:
    """Router scores of the rows of all processes, blank rows left out.

    The gradient of this process's own rows is multiplied by the number of processes, because DDP and FSDP average the
    gradients that each process finds for its own rows.

    Args:
        router_logits: one (B * N, Q, R) per routed attention, for B rows of N tiles, as many on each process.
        asked: (B,) bool, which rows are not blank.
    """
    own = torch.stack(router_logits, dim=1)  # (B * N, modules, Q, R)
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * accelerator.num_processes)
    everybody = accelerator.gather(own.detach())
    first = accelerator.process_index * len(own)
    everybody = torch.cat([everybody[:first], own, everybody[first + len(own) :]])
    kept = accelerator.gather(asked.repeat_interleave(len(own) // len(asked)))
    return everybody[kept].unbind(dim=1)
