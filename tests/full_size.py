"""Converts a checkpoint of the full size there and back, and says how long it took and how much memory it needed.

    python -m tests.full_size /big/disk --json

The checkpoint is one `pytorch_model.bin` of 17.5 GB with the names, shapes and types that the authors' training script
leaves (LoRA, a dead second head in float32) and values that mean nothing. 35 GB are in use at a time; all is deleted.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pvchat.modeling_pvchat import PVChatConfig, PVChatForConditionalGeneration
from pvchat.passport import passport
from tests.authors import authors_state_dict

RANK = 16
NOISE = 1 << 23  # values that are drawn; every tensor repeats them


def full_size_tensors() -> dict[str, torch.Tensor]:
    """The authors' names -> meta tensors, of a checkpoint that was trained on a subject."""
    config = PVChatConfig()
    config.text_config.vocab_size -= 1  # <sks> has a row, <video> has none
    with torch.device("meta"):
        model = PVChatForConditionalGeneration(config).to(torch.bfloat16)
        tensors = authors_state_dict(model.state_dict())
        for name in [name for name in tensors if name.startswith("lm.") and name.endswith("_proj.weight")]:
            rows, columns = tensors[name].shape
            for factor, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                factor = f"{name.removesuffix('.weight')}.lora_{factor}.default.weight"
                tensors[factor] = torch.empty(shape, dtype=torch.bfloat16)
        tensors["lm.lm_head.weight"] = tensors["lm.base_model.model.lm_head.weight"].float()
        for name, shape in (("weight", (768, 4096)), ("bias", (768,))):
            tensors[f"project_down.{name}"] = torch.empty(shape, dtype=torch.bfloat16)
        tensors["qformer.bert.embeddings.position_ids"] = torch.empty(1, 512, dtype=torch.int64)
    return tensors


def write_pickle(path: Path) -> None:
    """Writes these tensors with some values, without ever holding them: first their places, then through a mapping."""
    planned = full_size_tensors()
    with torch.serialization.skip_data():
        torch.save({name: torch.empty_like(tensor, device="cpu") for name, tensor in planned.items()}, path)
    noise = 0.02 * torch.randn(NOISE, generator=torch.Generator().manual_seed(0))
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    for number, tensor in enumerate(mapped.values()):
        values = noise.to(tensor.dtype).roll(7919 * number)
        for part in tensor.view(-1).split(NOISE):
            part.copy_(values[: len(part)])


def convert(*words: str | Path) -> dict[str, Any]:
    """Runs `pvchat convert` and returns `seconds`, `cpu_seconds`, `peak_gb`, and its report."""
    command = [sys.executable, "-m", "pvchat", "convert", *map(str, words), "--json", "--quiet"]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, subprocess.Popen(command, stdout=out) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command[2:5])} failed; see above.")
        out.seek(0)
        report = json.loads(out.read())
    return {
        "command": f"pvchat convert {' '.join(Path(word).name for word in map(str, words))}",
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        **{name: report[name] for name in ("tensors", "bytes", "merged")},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("disk", type=Path, help="a folder with 35 GB to spare")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the passport")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.disk) as folder:
        theirs, ours, back = (Path(folder) / name for name in ("theirs", "ours", "back"))
        theirs.mkdir()
        # In a process of its own: what is measured below starts with the memory of this one.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_pickle, args=(theirs / "pytorch_model.bin",)
        )
        writer.start()
        writer.join()
        there = convert(theirs, ours, "--tokenizer", "none")
        shutil.rmtree(theirs)
        runs = {"there": there, "back": convert(ours, back, "--to", "authors")}
    if args.json:
        print(json.dumps(runs | {"passport": passport("python -m tests.full_size", {"rank": RANK}, 0)}))
    else:
        for run in runs.values():
            print(
                f"{run['command']}: {run['bytes'] / 1e9:.2f} GB in {run['seconds']:.0f} s "
                f"({run['cpu_seconds']:.0f} s of processor), peak {run['peak_gb']:.2f} GB"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
