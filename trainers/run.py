"""From a base and a dataset to a subject's adapter: stage 1, stage 2, one folder each.

    out/stage1/{stage.json, history.json, controller.json, adapter/, checkpoints/}
    out/stage2/...
    out/adapter/{adapter_config.json, adapter_model.safetensors, subject.json}
    out/features/        encoder states, while training

`stage.json` holds a key of everything that decides the stage's result. Run again with the same key, a finished stage is
skipped and an unfinished one goes on from its last checkpoint; with another key it starts over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from tqdm import tqdm
from transformers import TrainerCallback

from ..errors import PVChatError
from ..modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
from ..modeling_pvchat.processing_pvchat import PVChatProcessor
from .adapter import (
    AdapterSettings,
    base_hash,
    build_subject_model,
    replace_folder,
    save_subject_adapter,
    subject_record,
)
from .base import PVChatSFTTrainer, last_checkpoint
from .collator import training_rows
from .config import PVChatTrainingConfig, Stage1Config, Stage2Config
from .features import FeatureCache
from .image_stage import ImageStageTrainer
from .video_stage import VideoStageTrainer

STAGES: dict[str, tuple[type[PVChatSFTTrainer], type[PVChatTrainingConfig]]] = {
    "1": (ImageStageTrainer, Stage1Config),
    "2": (VideoStageTrainer, Stage2Config),
}
SETTINGS = ("adapter", "train", *STAGES)


def train_subject(
    base: str | Path | PVChatForConditionalGeneration,
    dataset,
    out: str | Path,
    *,
    processor: PVChatProcessor | None = None,
    profile: str = "light",
    routing: str = "remoh",
    stages: Sequence[str] = ("1", "2"),
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = False,
) -> Path:
    """Trains a subject and returns its adapter folder, `out/adapter`.

    Args:
        base: a checkpoint folder or Hub name, or a loaded model (which is changed; then pass its `processor`).
        dataset: a `LocalDataset`; its training split is used.
        profile, routing: see `AdapterSettings`.
        stages: `("1", "2")`, or one of them alone. `("2",)` starts from a finished stage 1 in `out` if there is one.
        seed: of everything that is drawn.
        settings: changes of defaults: `"adapter"` (fields of `AdapterSettings`), `"train"` (of
            `PVChatTrainingConfig`, both stages), `"1"` and `"2"` (one stage).
        progress: show bars.

    Raises:
        PVChatError: unknown stage or setting, no training questions, or a base that does not fit.
    """
    out = Path(out)
    settings = dict(settings or {})
    check_settings(settings, stages)
    shape = AdapterSettings(**{"profile": profile, "routing": routing} | dict(settings.get("adapter", {})))
    if isinstance(base, str | Path):
        processor = PVChatProcessor.from_pretrained(base)
        on_gpu = torch.cuda.is_available()
        base = PVChatForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16 if on_gpu else torch.float32)
    elif processor is None:
        raise PVChatError("Pass the processor along with a loaded model, or the folder of both.")
    key = hash_of({"base": base_hash(base), "dataset": dataset.manifest["dataset_hash"], "adapter": asdict(shape)})
    model = build_subject_model(base, shape, seed)
    controller = None
    done = []
    for name in STAGES:
        folder = out / f"stage{name}"
        trainer_class, config_class = STAGES[name]
        if name not in stages and not finished(folder):
            continue
        args = config_class(
            output_dir=str(folder / "checkpoints"),
            seed=seed,
            disable_tqdm=True,
            **{**settings.get("train", {}), **settings.get(name, {})},
        )
        key = hash_of({"before": key, "stage": name, "settings": args.own_settings()})
        if finished(folder, key):
            set_peft_model_state_dict(model, load_peft_weights(str(folder / "adapter"), device="cpu"))
        elif name in stages:
            run_stage(name, trainer_class, args, model, processor, dataset, out, shape, key, controller, done, progress)
        else:
            continue  # an old stage 1, trained with other settings
        controller = json.loads((folder / "controller.json").read_text(encoding="utf-8"))
        done.append(name)
    shutil.rmtree(out / "features", ignore_errors=True)
    record = subject_record(model, dataset.subject, shape.profile, dataset.manifest["dataset_hash"], done, seed)
    return save_subject_adapter(model, out / "adapter", record)


def run_stage(
    name: str,
    trainer_class: type[PVChatSFTTrainer],
    args: PVChatTrainingConfig,
    model,
    processor,
    dataset,
    out: Path,
    shape: AdapterSettings,
    key: str,
    controller: dict[str, Any] | None,
    before: list[str],
    progress: bool,
) -> None:
    """Trains one stage of `model` in place and writes its folder; `stage.json` says "finished" last of all."""
    start = time.perf_counter()
    folder = out / f"stage{name}"
    marker = read_marker(folder)
    if marker.get("key") != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / "stage.json", {"key": key, "finished": False})
    rows = training_rows(dataset.split("train"), still=trainer_class.still)
    blocks = len(model.get_base_model().model.vision_tower.layers)
    trained = shape.num_vision_layers if shape.profile == "paper" and trainer_class.stage == 2 else 0
    inner = model.get_base_model().model
    features = FeatureCache(inner, processor, out / "features", blocks - trained, trainer_class.still)
    features.fill(rows, progress=progress)
    trainer = trainer_class(
        model,
        args,
        rows,
        processor,
        shape.profile,
        features=features,
        callbacks=[StageBar(f"stage {name}")] if progress else [],
    )
    if controller is not None:
        trainer.controller.load_state_dict(controller)
    checkpoint = last_checkpoint(args.output_dir)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    write_json(folder / "controller.json", trainer.controller.state_dict())
    write_json(
        folder / "history.json",
        {
            "stage": trainer_class.stage,
            "target_active_heads": 1.0 - trainer.controller.target,
            "trained": trainer.trained_counts(),
            "steps": trainer.history,
        },
    )
    record = subject_record(
        model, dataset.subject, shape.profile, dataset.manifest["dataset_hash"], [*before, name], args.seed
    )
    save_subject_adapter(model, folder / "adapter", record)
    shutil.rmtree(args.output_dir)
    seconds = round(time.perf_counter() - start, 2)
    write_json(folder / "stage.json", {"key": key, "finished": True, "seconds": seconds, "steps": len(trainer.history)})


class StageBar(TrainerCallback):
    """A bar of optimiser steps with the loss and the share of active heads."""

    def __init__(self, title: str):
        self.title = title

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = {name: f"{logs[name]:.3f}" for name in ("lm_loss", "active_heads") if name in (logs or {})}
        if shown:
            self.bar.set_postfix(shown)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def check_settings(settings: Mapping[str, Mapping[str, Any]], stages: Sequence[str]) -> None:
    """Raises PVChatError for an unknown stage, section or field, naming those that exist."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise PVChatError(f"Unknown training stage {', '.join(map(str, unknown)) or '(none)'}; choose from 1, 2.")
    for section, values in settings.items():
        if section not in SETTINGS:
            raise PVChatError(f"Unknown settings section {section!r}; allowed: {', '.join(SETTINGS)}.")
        known = {f.name for f in fields(AdapterSettings if section == "adapter" else PVChatTrainingConfig)}
        wrong = sorted(set(values) - known)
        if wrong:
            raise PVChatError(f"Unknown setting {', '.join(wrong)} in {section!r}; see pvchat.trainers.config.")


def hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def read_marker(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def finished(folder: Path, key: str | None = None) -> bool:
    """A stage that ran to its end, with this key if one is given."""
    marker = read_marker(folder)
    return bool(marker.get("finished")) and key in (None, marker["key"])


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
