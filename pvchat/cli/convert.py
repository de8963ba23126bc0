"""Converts a checkpoint of InternVideo2-Chat-8B (HD or not) or of the authors' training script into a folder that
`from_pretrained` and every other command read, and back.

SRC is a folder, a weight file or a name on the Hub (which is downloaded first). LoRA is merged, dead weights are
dropped with the reason, rows for <video> and <sks> are added. Files of torch.save are read as plain tensors: code in
them is refused. Memory stays at about twice --max-shard-size; interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import arguments

HELP = "InternVideo2-Chat and the authors' checkpoints to our format, and back"
EXAMPLES = (
    "pvchat convert OpenGVLab/InternVideo2_chat_8B_HD base --tokenizer mistralai/Mistral-7B-Instruct-v0.3",
    "pvchat convert checkpoint_epoch_7/pytorch_model.bin nz --tokenizer base --dry-run",
    "pvchat convert base theirs --to authors",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="checkpoint folder, weight file or Hub name")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write: new, or empty")
    parser.add_argument(
        "--to", choices=("pvchat", "authors"), default="pvchat", help="format of OUT (default: pvchat)"
    )
    parser.add_argument(
        "--tokenizer", help="folder or Hub name of Mistral-7B-Instruct-v0.3's, or none (default: beside the weights)"
    )
    parser.add_argument(
        "--tiles",
        choices=("2x1", "none"),
        help="views of a video (default: none if SRC is InternVideo2-Chat-8B, not HD)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of all weights (default: as they are)"
    )
    parser.add_argument("--max-shard-size", default="1GB", help="of a weight file (default: 1GB)")
    parser.add_argument("--dry-run", action="store_true", help="check names and shapes, write nothing")
    arguments.add_seed(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..convert import convert_checkpoint, describe

    report = convert_checkpoint(
        args.source,
        args.out,
        to=args.to,
        tokenizer=args.tokenizer,
        tiles=args.tiles,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        seed=args.seed,
        dry_run=args.dry_run,
        progress=args.progress,
    )
    if not args.json:
        print(describe(report))
    return report
