"""Exports the test split of a dataset as tasks of lmms-eval, so that any model it runs can be compared.

    OUT/pvchat_<name>.yaml              the clip and the question
    OUT/pvchat_<name>_reference.yaml    the reference clip first, with a sentence that names the person
    OUT/pvchat_<name>_text.yaml         no video at all: what the questions alone give away
    OUT/utils.py  presence.py           what the tasks call; they need lmms-eval and sacrebleu, not this package
    OUT/test.jsonl  clips/<video_id>.mp4

    lmms_eval --model qwen3_vl --model_args pretrained=... --tasks pvchat_nz,pvchat_nz_reference --include_path OUT

Paths in the files are relative to the folder, which can be moved as a whole. Clips of a real person are in it: it
needs the same care as the dataset.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ...errors import PVChatError
from ...session import MAX_NEW_TOKENS
from ..reference import reference_clips

MARK = "utils.py"  # what an older export in the folder is known by
REFERENCE_FILE = "clips/reference.mp4"
TASK = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: test.jsonl
test_split: test
output_type: generate_until
cluster_key: video_id
doc_to_visual: !function utils.{visual}
doc_to_text: !function utils.{text}
doc_to_target: gold
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: {tokens}
  temperature: 0
  do_sample: false
metric_list:
{metrics}
metadata:
  version: 1.0
  dataset_hash: "{dataset_hash}"
"""
METRICS = (
    ("balanced_accuracy", True),
    ("accuracy", True),
    ("false_accept_lookalike", False),
    ("false_accept_stranger", False),
    ("bleu1", True),
)
# Suffix of the task, how the clip is shown, and how the question is put.
TASKS = (
    ("", "doc_to_visual", "doc_to_text"),
    ("_reference", "doc_to_visual_with_reference", "doc_to_text_with_reference"),
    ("_text", "doc_to_no_visual", "doc_to_text"),
)


def export_lmms_eval(dataset, out: str | Path, split: str = "test") -> dict[str, Any]:
    """Writes the task folder, whole or not at all.

    Args:
        dataset: a `LocalDataset`.
        out: a new folder, or one that holds an older export.

    Returns:
        `folder`, `tasks`, `questions`, `clips`.

    Raises:
        PVChatError: the split is empty or has no existence question, the reference clip is missing, or the folder
            holds something else.
    """
    out = Path(out)
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise PVChatError(f"{out} holds something else; pass a new folder.")
    videos = dataset.split(split)
    if not any(qa.category == "existence" for video in videos for qa in video.qa):
        raise PVChatError(f"The {split} split has no existence question; build the dataset with test clips.")
    reference = reference_clips(dataset)[0]
    slug = "pvchat_" + (re.sub(r"[^a-z0-9]+", "_", dataset.subject.lower()).strip("_") or "subject")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(folder, dataset, videos, reference, slug)
        folder.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "folder": str(out),
        "tasks": [slug + suffix for suffix, _, _ in TASKS],
        "questions": sum(len(video.qa) for video in videos),
        "clips": len(videos),
    }


def _write(folder: Path, dataset, videos, reference, slug: str) -> None:
    (folder / "clips").mkdir()
    shutil.copyfile(reference.path, folder / REFERENCE_FILE)
    with open(folder / "test.jsonl", "w", encoding="utf-8") as file:
        for video in videos:
            shutil.copyfile(video.path, folder / "clips" / f"{video.video_id}.mp4")
            for qa in video.qa:
                file.write(json.dumps(_doc(video, qa), ensure_ascii=False) + "\n")
    here = Path(__file__).parent
    shutil.copyfile(here / "utils.py", folder / "utils.py")
    shutil.copyfile(here.parent / "presence.py", folder / "presence.py")
    metrics = "\n".join(
        f"  - metric: {name}\n    aggregation: !function utils.{name}\n    higher_is_better: {str(better).lower()}"
        for name, better in METRICS
    )
    for suffix, visual, text in TASKS:
        content = TASK.format(
            task=slug + suffix,
            visual=visual,
            text=text,
            tokens=MAX_NEW_TOKENS,
            metrics=metrics,
            dataset_hash=dataset.manifest["dataset_hash"],
        )
        (folder / f"{slug}{suffix}.yaml").write_text(content, encoding="utf-8")


def _doc(video, qa) -> dict[str, Any]:
    return {
        "qa_id": qa.qa_id,
        "video_id": video.video_id,
        "subject": video.subject,
        "category": qa.category,
        "question": qa.question,
        "gold": qa.answer,
        "present": video.subject_present,
        "origin": video.origin,
        "clip": f"clips/{video.video_id}.mp4",
        "reference": REFERENCE_FILE,
    }
