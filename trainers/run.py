"""From a base and a dataset to a subject's adapter: stage 1, stage 2, one folder each.

    out/stage1/{stage.json, history.json, controller.json, adapter/, checkpoints/}
    out/stage2/...
    out/adapter/{adapter_config.json, adapter_model.safetensors, subject.json}
    out/features/        encoder states, while training

`stage.json` holds a key of everything that decides the stage's result. Run again with the same key, a finished stage
is skipped and an unfinished one goes on from its last checkpoint; with another key it starts over.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock
from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import cached_file

from ..base_model import load_base
from ..errors import PVChatError, no_model
from ..files import write_json
from ..modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
from ..modeling_pvchat.processing_pvchat import PVChatProcessor
from .adapter import (
    AdapterSettings,
    base_hash,
    build_subject_model,
    save_subject_adapter,
    start_from_clips,
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
BASE_SETTINGS_FILE = "training.json"


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
    features: str | Path | None = None,
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
            `PVChatTrainingConfig`, both stages), `"1"` and `"2"` (one stage). A base may bring its own in a file
            `training.json` beside its weights (learning rates depend on a model's size); these come on top.
        features: folder for encoder states that several runs share; it stays. By default they live inside `out` and go
            at the end.
        progress: show bars.

    Raises:
        PVChatError: unknown stage or setting, no training questions, a base that does not fit, or a stage 1 in `out`
            that belongs to another run.
        MissingBackendError: the base's weights are in 4 bits and bitsandbytes is not installed.
    """
    out = Path(out)
    settings = merged_settings(base_settings(base), settings or {})
    check_settings(settings, stages)
    shape = AdapterSettings(**{"profile": profile, "routing": routing} | settings["adapter"])
    if isinstance(base, str | Path):
        base, processor = load_base(base)
    elif processor is None:
        raise PVChatError("Pass the processor along with a loaded model, or the folder of both.")
    dtype = base.dtype  # what the adapter will run in, so its file needs no more
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
            **settings["train"] | settings[name],
        )
        key = hash_of({"before": key, "stage": name, "settings": args.own_settings()})
        if finished(folder, key):
            set_peft_model_state_dict(model, load_peft_weights(str(folder / "adapter"), device="cpu"))
        elif name not in stages:
            raise PVChatError(
                f"{folder} was trained on other data or with other settings, so stage {stages[0]} cannot go on from "
                f"it; train both stages, or pass another output folder."
            )
        else:
            if shape.subject_init == "reference" and not done:
                start_from_clips(model, processor, [v.path for v in dataset.split("train") if v.origin == "original"])
            cache = out / "features" if features is None else Path(features)
            run_stage(
                trainer_class, args, model, processor, dataset, out, cache, shape, key, controller, [*done, name],
                progress,
            )  # fmt: skip
        controller = json.loads((folder / "controller.json").read_text(encoding="utf-8"))
        done.append(name)
    if is_main_process():
        shutil.rmtree(out / "features", ignore_errors=True)
        record = subject_record(model, dataset.subject, shape.profile, dataset.manifest["dataset_hash"], done, seed)
        save_subject_adapter(model, out / "adapter", record, dtype)
    PartialState().wait_for_everyone()
    return out / "adapter"


def run_stage(
    trainer_class: type[PVChatSFTTrainer],
    args: PVChatTrainingConfig,
    model,
    processor,
    dataset,
    out: Path,
    cache: Path,
    shape: AdapterSettings,
    key: str,
    controller: dict[str, Any] | None,
    stages: list[str],
    progress: bool,
) -> None:
    """Trains the last of `stages` in place and writes its folder; `stage.json` says "finished" last of all."""
    start = time.perf_counter()
    name = stages[-1]
    folder = out / f"stage{name}"
    with args.main_process_first(local=False):  # the others find what it did
        if read_marker(folder).get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / "stage.json", {"key": key, "finished": False})
    progress = progress and args.process_index == 0
    rows = training_rows(dataset.split("train"), still=trainer_class.still)
    blocks = len(model.get_base_model().model.vision_tower.layers)
    trained = shape.num_vision_layers if shape.profile == "paper" and trainer_class.stage == 2 else 0
    model.to(args.device)
    inner = model.get_base_model().model
    features = FeatureCache(inner, processor, cache, blocks - trained, trainer_class.still)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".lock-{args.process_index}"):  # runs that share clips encode each of them once
        features.fill(rows[args.process_index :: args.world_size], progress=progress)
    PartialState().wait_for_everyone()
    trainer = trainer_class(
        model,
        args,
        rows,
        processor,
        shape.profile,
        features=features,
        callbacks=[StageBar(f"stage {name}")] if progress else [],
    )
    if trainer.is_fsdp_enabled:
        raise PVChatError(
            "A subject is trained with the whole model on each device, but the launcher asks for FSDP; leave out "
            "--use_fsdp (a 4-bit base fits smaller cards)."
        )
    if controller is not None:
        trainer.controller.load_state_dict(controller)
    checkpoint = last_checkpoint(args.output_dir)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()
    if args.process_index == 0:
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
        digest = dataset.manifest["dataset_hash"]
        record = subject_record(model, dataset.subject, shape.profile, digest, stages, args.seed)
        save_subject_adapter(model, folder / "adapter", record)
        shutil.rmtree(args.output_dir)
        seconds = round(time.perf_counter() - start, 2)
        steps = len(trainer.history)
        write_json(folder / "stage.json", {"key": key, "finished": True, "seconds": seconds, "steps": steps})
    PartialState().wait_for_everyone()


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks, of those that train together."""
    return PartialState().is_main_process


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


def base_settings(base: Any) -> dict[str, dict[str, Any]]:
    """What a base recommends in its `training.json`; nothing for a loaded model or a base without the file."""
    if not isinstance(base, str | Path):
        return {}
    try:
        path = cached_file(base, BASE_SETTINGS_FILE, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise no_model(base, error) from error
    try:
        return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise PVChatError(f"{path} is not JSON ({error}); mend it, or delete it for the default settings.") from error


def merged_settings(*layers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sections of all layers; where two set the same field, the later one counts."""
    names = {name for layer in layers for name in layer} | set(SETTINGS)
    return {name: {k: v for layer in layers for k, v in layer.get(name, {}).items()} for name in names}


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
