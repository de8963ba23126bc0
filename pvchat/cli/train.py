"""Trains the two stages on a dataset that `pvchat build` made. A finished stage is skipped, an unfinished one goes on
from its last checkpoint. `accelerate launch --num_processes N -m pvchat train ...` trains in N processes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from . import arguments

HELP = "train the two stages on a dataset"
EXAMPLES = (
    "pvchat train runs/Nz/dataset --out runs/Nz",
    "pvchat train runs/Nz/dataset --out runs/nz-moh --attention moh --stage 2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="dataset folder")
    parser.add_argument("--subject", metavar="NAME", help="whom to learn from a dataset of several people")
    parser.add_argument("--out", type=Path, help="run folder (default: the folder that holds the dataset)")
    parser.add_argument("--stage", choices=("1", "2", "all"), default="all", help="default: all")
    arguments.add_base(parser)
    arguments.add_training(parser)
    arguments.add_seed(parser)


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    from ..dataset_builder import load_local
    from ..dataset_builder.merge import load_subject
    from ..session import EMBEDDED_BASE
    from ..trainers.run import is_main_process, train_subject

    dataset = load_local(args.dataset) if args.subject is None else load_subject(args.dataset, args.subject)
    if dataset.subject is None:
        people = ", ".join(dataset.manifest["subjects"])
        raise PVChatError(f"{args.dataset} is about several people ({people}); say whom to learn with --subject.")
    adapter = train_subject(
        args.base or EMBEDDED_BASE,
        dataset,
        args.out or args.dataset.resolve().parent,
        profile=args.profile,
        routing=args.attention,
        stages=("1", "2") if args.stage == "all" else (args.stage,),
        seed=args.seed,
        settings=arguments.read_settings(args.config),
        progress=args.progress,
    )
    if not is_main_process():
        return None
    if not args.json:
        print(adapter)
    return {"adapter": str(adapter)}
