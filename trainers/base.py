"""What the trainers of both stages share: the loss, the parameter groups, and the state beside the weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from ..errors import PVChatError
from .collator import IGNORED, GroupedCollator, existence_weights
from .config import PVChatTrainingConfig
from .distributed import FullBatches, blank_row, of_all_processes
from .features import FeatureCache
from .freezing import apply_freeze_table, trained_counts
from .sparsity import SparsityController, SparsityTerms

STATE_FILE = "pvchat_state.json"


class PVChatSFTTrainer(SFTTrainer):
    """`SFTTrainer` for videos with many questions.

    Each step: `loss = lm_loss + beta * SPR + HAE`, where `lm_loss` is the mean cross-entropy over answer tokens
    (`</s>` included) of the whole accumulated batch, existence answers weighted. `lm_loss`, `spr`, `hae`,
    `active_heads` and `beta` are logged beside `loss`, and kept for every step in `history`.

    Args:
        model: what `build_subject_model` returned.
        args: `Stage1Config` or `Stage2Config`.
        rows: training rows, see `training_rows`.
        processor: a `PVChatProcessor`.
        profile: `"light"` or `"paper"`; chooses the freeze table.
        features: cached encoder states; `None` encodes in every step.
        grouped: `False` trains one question per row, for comparison.
        eval_rows: rows to evaluate on, if any.

    Raises:
        PVChatError: the language model uses an attention that cannot take a block mask, or several processes train
            ungrouped.
    """

    stage: int
    still: bool
    _tag_names = ["pvchat"]
    _name = "PVChat-SFT"
    # `compute_loss` divides by the tokens of the whole accumulated batch; the Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model,
        args: PVChatTrainingConfig,
        rows: list[dict[str, Any]],
        processor,
        profile: str,
        features: FeatureCache | None = None,
        grouped: bool = True,
        eval_rows: list[dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        base = model.get_base_model()
        self.profile = profile
        self.groups = apply_freeze_table(model, profile, self.stage)
        self.controller = SparsityController(args, base.config.qformer_config)
        self.history: list[dict[str, float]] = []
        self._terms: list[dict[str, float]] = []
        self._attention = base.config.text_config._attn_implementation
        if self._attention not in ("sdpa", "eager"):
            raise PVChatError(
                f"Training needs sdpa or eager attention in the language model (questions of a row must not see each "
                f"other), got {self._attention!r}; load the base with attn_implementation='sdpa'."
            )
        if args.world_size > 1 and not grouped:
            raise PVChatError("Ungrouped training is for comparison and runs in one process; leave out grouped=False.")
        questions = [question for row in rows for question in row["qa"]]
        collator = GroupedCollator(
            processor,
            features=features,
            still=self.still,
            qa_per_video=args.qa_per_video,
            seed=args.seed,
            weights=existence_weights(questions) if args.balance_existence else None,
            decision_weight=args.decision_weight,
            grouped=grouped,
        )
        trained = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=Dataset.from_list(rows if args.world_size == 1 else [*rows, blank_row(rows)]),
            eval_dataset=None if eval_rows is None else Dataset.from_list(eval_rows),
            processing_class=processor,
            callbacks=[_EpochCallback(collator), *(callbacks or [])],
        )
        for parameter, values in trained:
            if parameter.dtype != values.dtype:  # SFTTrainer: bfloat16 on a base in 4 bits; small steps vanish
                parameter.data = values.to(parameter.device)
        self.remove_callback(PrinterCallback)  # standard output belongs to the command
        # SFTTrainer puts a forward with a fused head on the base. We never ask for it, and the base outlives us.
        vars(base).pop("forward", None)

    def _get_train_sampler(self, train_dataset=None):
        """Overridden: the blank row, which several processes have, is never drawn."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        return super()._get_train_sampler(rows if self.args.world_size == 1 else rows.select(range(len(rows) - 1)))

    def get_train_dataloader(self):
        """Overridden: blank rows fill up the last batch when several processes share it."""
        loader = super().get_train_dataloader()
        if self.args.world_size > 1:
            share = loader.batch_sampler
            share.batch_sampler = FullBatches(share.batch_sampler, len(self.train_dataset) - 1, self.args.world_size)
        return loader

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Overridden: the inherited loss drops the router logits, and cannot weight answers."""
        inputs = dict(inputs)
        targets, weights = inputs.pop("labels")[:, 1:], inputs.pop("loss_weights")[:, 1:]
        if inputs["attention_mask"].ndim == 4 and self._attention == "eager":
            blocked = (~inputs["attention_mask"]).float()  # eager attention adds its mask
            inputs["attention_mask"] = blocked * torch.finfo(torch.float32).min
        answered = targets.ne(IGNORED)
        keep = inputs.pop("logits_to_keep")  # the head runs only there
        outputs = model(**inputs, use_cache=False, logits_to_keep=keep)
        losses = F.cross_entropy(
            outputs.logits.float().flatten(0, 1), targets[:, keep].flatten(), ignore_index=IGNORED, reduction="none"
        )
        count = answered.sum() if num_items_in_batch is None else num_items_in_batch
        lm_loss = (losses * weights[:, keep].flatten()).sum() / count
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            lm_loss = lm_loss * self.accelerator.num_processes  # DDP averages over ranks what `count` already divided
        loss = lm_loss
        terms = self._sparsity_terms(outputs.router_logits, answered.any(dim=1))
        if terms is not None:
            # Of the whole micro-batch, on every rank the same; averaged over accumulation here.
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + terms.loss / steps
        self._note(lm_loss, terms)
        return (loss, outputs) if return_outputs else loss

    def _sparsity_terms(self, router_logits, asked: torch.Tensor) -> SparsityTerms | None:
        if not router_logits:
            return None
        if self.args.world_size > 1:
            router_logits = of_all_processes(router_logits, asked, self.accelerator)
        return self.controller.terms(router_logits, self.model.training)

    def _note(self, lm_loss: torch.Tensor, terms: SparsityTerms | None) -> None:
        """Keeps the parts of the loss for the log, as means over ranks; one transfer from the device per batch."""
        names, values = ["lm_loss"], [lm_loss.detach()]
        if terms is not None:
            names, values = names + ["spr", "hae", "active_heads"], values + [terms.spr, terms.hae, terms.active_heads]
        means = self.accelerator.reduce(torch.stack([value.float() for value in values]), reduction="mean")
        parts = dict(zip(names, means.tolist(), strict=True))
        for name, value in parts.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)
        if self.model.training:
            self._terms.append(parts)

    def training_step(self, *args, **kwargs):
        """Overridden: after the last micro-batch of an optimiser step, beta moves and the step enters the history."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            parts = {name: [terms[name] for terms in self._terms] for name in self._terms[0]}
            record = {"step": self.state.global_step + 1, "epoch": self.state.epoch}
            record["lm_loss"] = sum(parts.pop("lm_loss"))  # each micro-batch is divided by the tokens of all
            record |= {name: sum(values) / len(values) for name, values in parts.items()}
            record["beta"] = self.controller.beta
            self.history.append(record)
            self._metrics["train"]["beta"].append(self.controller.beta)
            self._terms.clear()
            self.controller.step(lambda rate: self.accelerator.reduce(rate, reduction="mean"))
        return loss

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Overridden: one group per row of the freeze table's groups, with and without weight decay.

        Biases, norms, subject tokens and `<sks>` rows are not decayed. The freeze table is applied again because
        loading a checkpoint makes all of PEFT's parameters trainable.
        """
        if self.optimizer is None:
            model = self.model if model is None else model
            self.groups = apply_freeze_table(self.model, self.profile, self.stage)
            sorted_parameters: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                group = self.groups[name.removeprefix("module.")]
                decayed = parameter.ndim > 1 and group != "subject"
                sorted_parameters.setdefault((group, decayed), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "lr": self.args.learning_rates[group],
                        "weight_decay": self.args.weight_decay if decayed else 0.0,
                        "name": group,
                    }
                    for (group, decayed), parameters in sorted_parameters.items()
                ],
                **options,
            )
        return self.optimizer

    def trained_counts(self) -> dict[str, int]:
        """Number of trained values per learning-rate group."""
        return trained_counts(self.model, self.groups)

    def state_dict(self) -> dict[str, Any]:
        """What a run is besides weights, optimiser and random state."""
        return {"controller": self.controller.state_dict(), "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["controller"])
        self.history = list(state["history"])

    def _save_checkpoint(self, model, trial):
        """Overridden: adds our state, written last, so that a checkpoint without it is known to be unfinished."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process adds its random state
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            temporary = folder / f"{STATE_FILE}.tmp"
            temporary.write_text(json.dumps(self.state_dict()), encoding="utf-8")
            os.replace(temporary, folder / STATE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Overridden: reads our state back."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = (Path(resume_from_checkpoint) / STATE_FILE).read_text(encoding="utf-8")
        self.load_state_dict(json.loads(state))

    def create_model_card(self, *args, **kwargs):
        """Overridden: cards are written when a run is published, from its measured numbers."""

    def floating_point_ops(self, inputs) -> int:
        """Overridden: the inherited count walks over all parameters in every step, and ignores the cache."""
        return 0

    def _send_telemetry(self):
        """Overridden: training works without a network, and says nothing about itself."""


class _EpochCallback(TrainerCallback):
    """Tells the collator which epoch it is, so that it picks the questions of that epoch."""

    def __init__(self, collator: GroupedCollator):
        self.collator = collator

    def on_train_begin(self, args, state, control, **kwargs):
        if args.process_index > 0:  # or all processes would drop out the same
            torch.manual_seed(args.seed + args.process_index)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch = int(state.epoch or 0)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest finished checkpoint of a stage, or `None`."""
    finished = [path.parent for path in Path(folder).glob(f"checkpoint-*/{STATE_FILE}")]
    return max(finished, key=lambda path: int(path.name.split("-")[1]), default=None)
