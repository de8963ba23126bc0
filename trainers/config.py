"""Settings of the two training stages: `SFTConfig` plus our fields, and the defaults we change.

"reference" is the authors' script (learning rates 1e-4 / 1e-5 / 1e-6, AdamW with weight decay 0.01, constant schedule,
no clipping, two questions a step); "paper" is PVChat (ICCV 2025).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from trl import SFTConfig

from ..errors import PVChatError

SPR_VARIANTS = ("quantile", "paper", "reference")


@dataclass
class PVChatTrainingConfig(SFTConfig):
    r"""What both stages share. A "row" is a video with its questions, so a batch size counts videos.

    Args:
        subject_learning_rate: subject tokens and the two `<sks>` rows (embedding and head). Reference 1e-4.
        router_learning_rate: head routers. Reference 1e-6: with Adam a router weight moves that much in a step, and
            the share of active heads stays where it starts. With the default it is on target after about 60 steps.
        qformer_learning_rate: what changes the Q-Former (`paper`: its weights, reference 1e-5; `light`: its LoRA).
        lora_learning_rate: LoRA of the language model. Reference 1e-5 with 728 steps an epoch; grouped batches make 81
            or fewer.
        vision_learning_rate: last blocks of the video encoder (`paper`, stage 2). The paper gives none.
        qa_per_video: questions that share one row. A video comes once an epoch and brings this many of its questions,
            others in the next epoch, in an order given by seed and epoch; `None` brings all of them every time.
        balance_existence: weigh the answers of existence questions so that "yes" and "no" count equally.
        decision_weight: factor on the loss of the "Yes" or "No" that opens an existence answer. The rest of the answer
            is one of many phrasings and teaches nothing about who is there. Reference 1.
        spr, hae: use these losses (only with `remoh` routing).
        spr_variant: `"quantile"`, the paper's with another centre (see `quantile_spr_loss`); `"paper"` to the letter;
            or `"reference"` for what the authors' code computes.
        spr_start: first coefficient beta. Reference 1e-8, from where it takes 46 steps to 1.
        spr_max: largest beta; it grows for as long as too many heads are on. Reference 10.
        sparsity_gain: k of `beta <- beta exp(k (T - R))`. Reference 0.8.
        sparsity_weight: factor on both losses.
        balance_weight: factor on the load-balancing loss of `moh` routing. MoH (Jin et al., 2024): 0.01.
    """

    subject_learning_rate: float = 1e-3
    router_learning_rate: float = 1e-3
    qformer_learning_rate: float = 1e-4
    lora_learning_rate: float = 1e-4
    vision_learning_rate: float = 1e-5
    qa_per_video: int | None = None
    balance_existence: bool = True
    decision_weight: float = 1.0
    spr: bool = True
    hae: bool = True
    spr_variant: str = "quantile"
    spr_start: float = 1e-3
    spr_max: float = 1.0
    sparsity_gain: float = 0.8
    sparsity_weight: float = 1.0
    balance_weight: float = 0.01

    # Changed defaults of SFTConfig.
    per_device_train_batch_size: int = 4
    per_device_eval_batch_size: int = 4
    weight_decay: float = 0.01  # reference
    lr_scheduler_type: str = "constant"  # reference
    max_grad_norm: float = 0.0  # reference: none; Adam is indifferent to the scale that beta gives the gradient
    gradient_checkpointing: bool = False  # a 7B language model wants True
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    bf16: bool | None = None  # True where the device is a GPU that has it
    max_length: int | None = None  # cutting a prompt would cut video placeholders
    loss_type: str = "nll"
    report_to: str = "none"
    logging_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2  # a run that is killed while it writes the last one has the one before
    remove_unused_columns: bool = False  # our collator reads the columns
    dataset_kwargs: dict[str, Any] | None = field(default_factory=lambda: {"skip_prepare_dataset": True})
    ddp_find_unused_parameters: bool | None = False  # every trained value takes part in every step

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else the processes of a launcher would not find each other, and each train alone
        self.activation_checkpointing = self.gradient_checkpointing  # its name from transformers 5.23 on
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.spr_variant not in SPR_VARIANTS:
            raise PVChatError(f"spr_variant must be one of {', '.join(SPR_VARIANTS)}, got {self.spr_variant!r}.")
        if self.qa_per_video is not None and self.qa_per_video < 1:
            raise PVChatError(f"qa_per_video must be at least 1, or None for all, got {self.qa_per_video}.")
        for name in ("subject", "router", "qformer", "lora", "vision"):
            if getattr(self, f"{name}_learning_rate") < 0:
                raise PVChatError(f"{name}_learning_rate must not be negative, got {self.learning_rates[name]}.")
        super().__post_init__()

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rate of each parameter group of the freeze table."""
        return {name: getattr(self, f"{name}_learning_rate") for name in GROUPS}

    def own_settings(self) -> dict[str, Any]:
        """What decides the result of a run: every field but those that only say where and how it is run."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in _DECISIVE}


GROUPS = ("subject", "router", "qformer", "lora", "vision")

_OURS = {f.name for f in fields(PVChatTrainingConfig)} - {f.name for f in fields(SFTConfig)}
_DECISIVE = _OURS | {
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "seed",
    "data_seed",
    "warmup_steps",
    "weight_decay",
}


@dataclass
class Stage1Config(PVChatTrainingConfig):
    """Image understanding: first frames, existence and appearance questions, 1 epoch (paper, reference)."""

    num_train_epochs: float = 1.0


@dataclass
class Stage2Config(PVChatTrainingConfig):
    """Video understanding: whole clips, all questions, 7 epochs (paper)."""

    num_train_epochs: float = 7.0
