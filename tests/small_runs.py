"""Run folders as `personalize` leaves them, made in a second: an adapter that was moved instead of trained, a dataset
of invented clips, scores of invented answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pvchat.dataset_builder import ConsentRecord, assemble_dataset
from pvchat.dataset_builder.consent import consent_id
from pvchat.evaluation import score_lines
from pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.passport import passport
from pvchat.trainers.adapter import AdapterSettings, build_subject_model, save_subject_adapter, subject_record
from tests.small_datasets import write_dataset
from tests.tiny import SUBJECT, tiny_base, tiny_model, tiny_videos

SECONDS = {"dataset": 7.5, "stage1": 13.5, "stage2": 37.4, "evaluate": 30.5, "total": 88.9}


def moved_model(base: Any = None, seed: int = 0, size: float = 0.1, **settings: Any):
    """A subject model on `base` (a tiny one by default) whose trained values were moved, as training would."""
    settings = {"num_vision_layers": 1, "rank": 4, **settings}
    model = build_subject_model(base or tiny_model(), AdapterSettings(**settings), seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model.eval()


def write_run(
    folder: Path, name: str = "<Nz>", *, base: Any = None, consent: Any = None, seed: int = 0, size: float = 0.1
) -> Path:
    """A finished run; `consent` is of a real person, None = drawn."""
    dataset = write_dataset(folder / "dataset", name, consent=consent)
    model = moved_model(base, seed, size)
    record = subject_record(model, name, "light", dataset.manifest["dataset_hash"], ["1", "2"], seed)
    save_subject_adapter(model, folder / "adapter", record)
    owner = {"name": name, "reference": "clip.mp4", "consent": consent.to_json() if consent else None}
    put(folder / "subject.json", owner)
    inputs = {"name": name, "base": "tiny", "recipe": {"name": "light"}}
    record = {"format": 1, "inputs": inputs, **passport("pvchat personalize clip.mp4", inputs, seed)}
    put(folder / "run.json", record | {"state": "finished", "seconds": SECONDS})
    put(folder / "report" / "scores.json", scores_of(name, dataset.manifest["dataset_hash"]))
    return folder


def write_tiny_run(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """A tiny base that reads three tiles, and the run of a drawn person on it."""
    base = tiny_base(folder / "tiny-base", tile_grid=(2, 1))
    return base, write_run(folder / "Nz", base=PVChatForConditionalGeneration.from_pretrained(base), seed=seed)


def write_real_run(folder: Path) -> tuple[Path, Path]:
    """A tiny base, and a run on it whose dataset has clips that play; of adapter and dataset alone."""
    base, run = tiny_base(folder / "tiny-base"), folder / "Nz"
    record = ConsentRecord.for_fiction()
    manifest = {"consent_id": consent_id(record), "fictional": True, "backends": {}, "dropped": [], "seed": 0}
    dataset = assemble_dataset(SUBJECT, tiny_videos(folder / "drawn", 2, 1), run / "dataset", manifest)
    model = moved_model(PVChatForConditionalGeneration.from_pretrained(base))
    subject = subject_record(model, SUBJECT, "light", dataset.manifest["dataset_hash"], ["1", "2"], 0)
    save_subject_adapter(model, run / "adapter", subject)
    return base, run


def scores_of(name: str, dataset_hash: str) -> dict[str, Any]:
    """Of ten clips with and ten without the subject; one look-alike is accepted, the base says yes to everything."""
    lines = [_line(name, number, number < 10) for number in range(20)]
    lines[10] |= {"origin": "hard_negative", "answer": "Yes.", "margin": 1.0}
    scores = score_lines(lines, {"no_adapter": [{**line, "answer": "Yes.", "margin": 0.5} for line in lines]})
    scores["passport"] = passport("pvchat evaluate", {"dataset": dataset_hash}, 0)
    return scores


def _line(name: str, number: int, present: bool) -> dict[str, Any]:
    answer = "Yes." if present else "No."
    return {
        "qa_id": f"{number}-00", "video_id": str(number), "subject": name, "split": "test", "category": "existence",
        "question": f"Is {name} here?", "gold": answer, "source": "template", "present": present, "origin": "user",
        "answer": answer, "margin": 2.0 if present else -2.0,
    }  # fmt: skip


def put(path: Path, value: Any) -> None:
    """Writes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
