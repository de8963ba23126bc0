"""Loads a base, a dataset and a subject's adapter in fresh processes that cannot import pvchat.

    python examples/fresh_process.py runs/Nz
    python examples/fresh_process.py runs/Nz --base BASE --json

The base is saved as it would go to the Hub, with its code. Then each of these runs in a process of its own, with plain
transformers, datasets and PEFT, and is compared with what the installed package computes here:

    model     AutoModelForImageTextToText, AutoModel, AutoProcessor and the pipeline, with trust_remote_code=True
    re-saved  the same from the folder that such a process has saved
    dataset   load_dataset(folder, "qa") and "videos", as a whole and streaming
    adapter   PeftModel.from_pretrained on that base
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

QUESTION = "Is <sks> in this video?"
START = """
import json, sys
sys.modules["pvchat"] = sys.modules["torchvision"] = None  # importing them fails, wherever they are installed
import torch
torch.set_num_threads(1)
job = json.loads(sys.argv[1])
"""
BATCH = """
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils import logging
logging.set_verbosity_error()
known = {"trust_remote_code": True, "revision": job.get("revision")}
processor = AutoProcessor.from_pretrained(job["base"], **known)
content = [{"type": "video", "path": job["video"]}, {"type": "text", "text": job["question"]}]
chat = [{"role": "user", "content": content}]
batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", subject=True)
"""
MODEL = (
    START
    + BATCH
    + """
model = AutoModelForImageTextToText.from_pretrained(job["base"], **known)
body = AutoModel.from_pretrained(job["base"], **known)
pipe = pipeline("image-text-to-text", model=job["base"], **known)
reply = pipe(text=chat, subject=True, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
with torch.no_grad():
    found = {"logits": model(**batch).logits, "hidden": body(**batch).last_hidden_state}
classes = [type(part).__module__.split(".")[0] for part in (model, body, pipe.model, pipe.processor)]
torch.save(found | {"reply": reply, "classes": classes}, job["out"])
for part in (model, processor):
    if "save" in job:
        part.save_pretrained(job["save"])
    if "push" in job:
        part.push_to_hub(job["push"])
"""
)
ADAPTER = (
    START
    + BATCH
    + """
from peft import PeftModel
base = AutoModelForImageTextToText.from_pretrained(job["base"], qformer_config=job["qformer"], **known)
model = PeftModel.from_pretrained(base, job["adapter"])
with torch.no_grad():
    found = {"logits": model(**batch).logits}
    with model.disable_adapter():
        found["base"] = model(**batch).logits
torch.save(found, job["out"])
"""
)
DATASET = (
    START
    + """
from datasets import Video, load_dataset
counts = {}
for name in ("qa", "videos"):
    whole, stream = (load_dataset(job["dataset"], name, streaming=streaming) for streaming in (False, True))
    for split in whole:
        rows, read = whole[split], stream[split]
        if name == "videos":
            rows, read = (table.cast_column("video", Video(decode=False)) for table in (rows, read))
            clip = rows[0]["video"]
            assert clip["bytes"][4:8] == b"ftyp", "not an mp4"
        key = "qa_id" if name == "qa" else "video_id"
        assert [row[key] for row in read] == rows[key], "streaming gives other rows"
        counts[f"{name} {split}"] = len(rows)
json.dump(counts, open(job["out"], "w"))
"""
)


def run_fresh(code: str, hub: dict[str, str] | None = None, **job: str | Path | dict) -> None:
    """Runs Python code in a process that sees neither this folder nor pvchat, and whose caches are empty.

    Args:
        hub: environment of a Hub to load from; without it nothing is downloaded.
        job: what the code finds in `job`.
    """
    hidden = ("HF_", "PYTHON", "TRANSFORMERS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, json.dumps(job, default=str)],
            cwd=home,
            env=kept | (hub or {"HF_HUB_OFFLINE": "1"}) | {"HF_HOME": home},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"A fresh process failed:\n{done.stderr[-3000:]}")


class Here:
    """What the installed package computes about one clip, to compare with.

    Args:
        base: a checkpoint folder or Hub name.
        adapter: a subject's adapter folder.
        video: a clip.
    """

    @torch.no_grad()
    def __init__(self, base: str | Path, adapter: Path, video: Path):
        from pvchat.modeling_pvchat import PVChatForConditionalGeneration, PVChatProcessor
        from pvchat.trainers.adapter import SubjectRecord, load_subject_adapter

        torch.set_num_threads(1)  # sums of several threads come out in another order
        model, processor = PVChatForConditionalGeneration.from_pretrained(base), PVChatProcessor.from_pretrained(base)
        self.qformer = SubjectRecord.read(adapter).qformer
        self.job = {"video": video.resolve(), "question": QUESTION}
        content = [{"type": "video", "path": str(video)}, {"type": "text", "text": QUESTION}]
        chat = [{"role": "user", "content": content}]
        batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", subject=True)
        self.base = {"logits": model(**batch).logits, "hidden": model.model(**batch).last_hidden_state}
        subject = load_subject_adapter(model, adapter).eval()
        self.adapter = {"logits": subject(**batch).logits, "base": self.base["logits"]}

    def compare_model(self, work: Path, **job) -> dict:
        """Largest differences of a base that a fresh process loads, and the answer of its pipeline."""
        run_fresh(MODEL, **self.job, **job, out=work / "found.pt")
        found = torch.load(work / "found.pt")
        assert set(found["classes"]) == {"transformers_modules"}, found["classes"]
        return {key: largest_difference(found[key], value) for key, value in self.base.items()} | {
            "reply": found["reply"]
        }

    def compare_adapter(self, work: Path, **job) -> dict:
        """The same of an adapter, switched on and off."""
        run_fresh(ADAPTER, **self.job, **job, qformer=self.qformer, out=work / "found.pt")
        found = torch.load(work / "found.pt")
        return {key: largest_difference(found[key], value) for key, value in self.adapter.items()}


def count_rows(work: Path, **job) -> dict[str, int]:
    """Rows by config and split of a dataset that a fresh process loads, as a whole and streaming."""
    run_fresh(DATASET, **job, out=work / "counts.json")
    return json.loads((work / "counts.json").read_text())


def compare(run: Path, base: str | Path, work: Path) -> dict:
    """Everything above for one run folder (`dataset/`, `adapter/`); returns differences, counts and sizes."""
    from pvchat.modeling_pvchat import PVChatForConditionalGeneration, PVChatProcessor

    adapter = (run / "adapter").resolve()
    folder, again = work / "base", work / "again"
    for part in (PVChatForConditionalGeneration, PVChatProcessor):
        part.from_pretrained(base).save_pretrained(folder)
    here = Here(base, adapter, first_clip(run))
    megabytes = sum(file.stat().st_size for file in adapter.iterdir()) / 1e6
    return {
        "model": here.compare_model(work, base=folder, save=again),
        "re-saved": here.compare_model(work, base=again),
        "dataset": count_rows(work, dataset=(run / "dataset").resolve()),
        "adapter": here.compare_adapter(work, base=folder, adapter=adapter) | {"megabytes": megabytes},
    }


def first_clip(run: Path) -> Path:
    return min((run / "dataset" / "clips").glob("*.mp4"))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of pvchat demo or personalize")
    parser.add_argument("--base", help="the base of that run (default: the embedded pvchat-cartoon)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    from pvchat.session import EMBEDDED_BASE

    with tempfile.TemporaryDirectory() as work:
        result = compare(args.run, args.base or EMBEDDED_BASE, Path(work))
    if args.json:
        print(json.dumps(result))
    else:
        for name in ("model", "re-saved"):
            print(f"{name:9} logits differ by {result[name]['logits']}, hidden states by {result[name]['hidden']}")
        print(f"dataset   {', '.join(f'{name} {count}' for name, count in result['dataset'].items())}")
        adapter = result["adapter"]
        print(f"adapter   logits differ by {adapter['logits']}, switched off by {adapter['base']}")
        print(f"adapter   {adapter['megabytes']:.2f} MB")
    differences = [result[name][key] for name in ("model", "re-saved") for key in ("logits", "hidden")]
    return int(any([*differences, result["adapter"]["logits"], result["adapter"]["base"]]))


if __name__ == "__main__":
    sys.exit(main())
