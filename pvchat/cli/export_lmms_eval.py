"""Exports the test split of a dataset as tasks of lmms-eval: the clip alone, with the reference clip first, and
without any video. The folder holds the clips and needs only lmms-eval, so that any model it runs can be compared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "export a dataset as lmms-eval tasks"
EXAMPLES = (
    "pvchat export-lmms-eval runs/Nz/dataset lmms/nz",
    "pvchat export-lmms-eval runs/Ada/dataset lmms/ada --json",
    "lmms_eval --model qwen3_vl --tasks pvchat_nz,pvchat_nz_reference --include_path lmms/nz",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="dataset folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder, or an older export")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..dataset_builder import load_local
    from ..evaluation import export_lmms_eval

    result = export_lmms_eval(load_local(args.dataset), args.out)
    if not args.json:
        print(f"{result['questions']} questions on {result['clips']} clips in {result['folder']}")
        print(f"lmms_eval --tasks {','.join(result['tasks'])} --include_path {result['folder']} --model ...")
    return result
