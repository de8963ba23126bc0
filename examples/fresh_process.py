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
"""
BATCH = """
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils import logging
logging.set_verbosity_error()
folder, video, question, out = sys.argv[1:5]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
content = [{"type": "video", "path": video}, {"type": "text", "text": question}]
chat = [{"role": "user", "content": content}]
batch = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", subject=True)
"""
MODEL = (
    START
    + BATCH
    + """
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
body = AutoModel.from_pretrained(folder, trust_remote_code=True)
pipe = pipeline("image-text-to-text", model=model, processor=processor)
reply = pipe(text=chat, subject=True, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
with torch.no_grad():
    found = {"logits": model(**batch).logits, "hidden": body(**batch).last_hidden_state}
torch.save(found | {"reply": reply, "class": type(model).__module__}, out)
if len(sys.argv) > 5:
    model.save_pretrained(sys.argv[5])
    processor.save_pretrained(sys.argv[5])
"""
)
ADAPTER = (
    START
    + BATCH
    + """
from peft import PeftModel
adapter, qformer = sys.argv[5], json.loads(sys.argv[6])
base = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, qformer_config=qformer)
model = PeftModel.from_pretrained(base, adapter)
with torch.no_grad():
    found = {"logits": model(**batch).logits}
    with model.disable_adapter():
        found["base"] = model(**batch).logits
torch.save(found, out)
"""
)
DATASET = (
    START
    + """
from datasets import Video, load_dataset
folder, out = sys.argv[1:]
counts = {}
for name in ("qa", "videos"):
    whole, stream = load_dataset(folder, name), load_dataset(folder, name, streaming=True)
    for split in whole:
        rows, read = whole[split], stream[split]
        if name == "videos":
            rows, read = (table.cast_column("video", Video(decode=False)) for table in (rows, read))
            clip = rows[0]["video"]
            assert clip["bytes"][4:8] == b"ftyp", "not an mp4"
        key = "qa_id" if name == "qa" else "video_id"
        assert [row[key] for row in read] == rows[key], "streaming gives other rows"
        counts[f"{name} {split}"] = len(rows)
json.dump(counts, open(out, "w"))
"""
)


def run_fresh(code: str, *words: str | Path) -> None:
    """Runs Python code in a process that sees neither this folder nor pvchat; its caches are beside the result."""
    hidden = ("HF_", "PYTHON", "TRANSFORMERS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, *map(str, words)],
            cwd=home,
            env={**kept, "HF_HOME": home, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"A fresh process failed:\n{done.stderr[-3000:]}")


@torch.no_grad()
def compare(run: Path, base: str | Path, work: Path) -> dict:
    """Everything above for one run folder (`dataset/`, `adapter/`); returns differences, counts and sizes."""
    from pvchat.modeling_pvchat import PVChatForConditionalGeneration, PVChatProcessor
    from pvchat.trainers.adapter import SubjectRecord, load_subject_adapter

    torch.set_num_threads(1)  # sums of several threads come out in another order
    model, processor = PVChatForConditionalGeneration.from_pretrained(base), PVChatProcessor.from_pretrained(base)
    folder, again = work / "base", work / "again"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    video = sorted((run / "dataset" / "clips").glob("*.mp4"))[0].resolve()
    content = [{"type": "video", "path": str(video)}, {"type": "text", "text": QUESTION}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt", subject=True
    )
    expected = {"logits": model(**batch).logits, "hidden": model.model(**batch).last_hidden_state}
    result: dict = {}
    for name, source, target in (("model", folder, (again,)), ("re-saved", again, ())):
        run_fresh(MODEL, source, video, QUESTION, work / "found.pt", *target)
        found = torch.load(work / "found.pt")
        assert found["class"].startswith("transformers_modules."), found["class"]
        result[name] = {key: largest_difference(found[key], value) for key, value in expected.items()}
        result[name]["reply"] = found["reply"]

    run_fresh(DATASET, (run / "dataset").resolve(), work / "counts.json")
    result["dataset"] = json.loads((work / "counts.json").read_text())

    adapter = (run / "adapter").resolve()
    qformer = SubjectRecord.read(adapter).qformer
    run_fresh(ADAPTER, folder, video, QUESTION, work / "found.pt", adapter, json.dumps(qformer))
    found = torch.load(work / "found.pt")
    subject = load_subject_adapter(model, adapter).eval()
    result["adapter"] = {
        "logits": largest_difference(found["logits"], subject(**batch).logits),
        "base": largest_difference(found["base"], expected["logits"]),
        "megabytes": sum(file.stat().st_size for file in adapter.iterdir()) / 1e6,
    }
    return result


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
