"""Builds the dataset of a person alone: clips with questions and answers, in the layout that `datasets.load_dataset`
reads.

Interrupted or killed, the same command goes on where it stopped: what is finished is kept in OUT/.build, and the
dataset is the same. Changed options redo only what depends on them. A folder that holds a finished dataset of other
inputs, or an unfinished one of other people, is refused.

The recipe says which clips are made and by what: light (a CPU, no downloads), paper, paper-balanced, modern, tiny, or
a YAML file of your own ({base: modern, backends: {portrait: qwen-edit}}). contact_sheets/ in the dataset folder shows
every clip that was made, kept or not, with the reason.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from . import arguments

HELP = "build the dataset of a person"
EXAMPLES = (
    'pvchat build clip.mp4 --name "<Nz>" --gallery others/ --i-have-consent --out data/nz',
    'pvchat build clip.mp4 --name "<Nz>" --recipe modern --licence-policy permissive --dry-run',
    'pvchat build clip.mp4 --name "<Nz>" --gallery others/ --i-have-consent --limit 2 --only verify',
    'pvchat build clip.mp4 --name "<Nz>" --gallery others/ --i-have-consent --out data/nz --engine ray',
    'pvchat build party.mp4 --name "<Nz>" --subject-photo nz.jpg --recipe paper --gallery others/ --consent nz.json',
    'pvchat build two.mp4 --name "<Nz>" --subject-box 20,10,300,470 --also "<Ada>@330,10,620,470" --gallery others/',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_subject(parser)
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME[@X0,Y0,X1,Y1]",
        help="another person of the same video to learn, and where; may be repeated",
    )
    parser.add_argument(
        "--also-consent", type=Path, action="append", default=[], metavar="FILE", help="their records, in this order"
    )
    arguments.add_recipe(parser)
    parser.add_argument(
        "--strangers", type=Path, help="where random people come from, if not from the gallery (CelebV-HQ layout, too)"
    )
    parser.add_argument("--drivers", type=Path, help="folder with a driving clip per motion: yes.mp4, no.mp4, ...")
    parser.add_argument(
        "--licence-policy",
        choices=("research", "permissive"),
        default="research",
        help="permissive refuses backends that are not for any use (default: research)",
    )
    arguments.add_base(parser)
    arguments.add_seed(parser)
    parser.add_argument("--out", type=Path, help="dataset folder (default: runs/NAME/dataset)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N clips per origin, to try it out")
    parser.add_argument("--only", metavar="STAGE", help="stop after this stage and say where its artefacts lie")
    parser.add_argument(
        "--resume", action="store_true", help="refuse to begin where nothing was begun (a rerun resumes without it)"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: on all machines of the Ray cluster that RAY_ADDRESS names, or on this one (default: local)",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="be process I of N that make the clips together (Slurm array); run once more without it to assemble",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be made, and what it costs; writes nothing"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..dataset_builder import Stopped, check_licences, get_recipe
    from ..dataset_builder.engine_shard import Shard
    from ..runs import build
    from .show import show_dataset, show_plan, show_stopped

    subject = arguments.subject_arguments(args)
    recipe = get_recipe(subject.pop("recipe")).limited(args.limit)
    check_licences(recipe, args.licence_policy)
    if args.dry_run:
        return show_plan(recipe, args.reference, subject["name"], quiet=args.json, gallery=args.gallery)
    made = build(
        **subject,
        recipe=recipe,
        out=args.out or Path("runs") / subject["name"].strip("<>") / "dataset",
        also=_also(args),
        strangers=args.strangers,
        drivers=args.drivers,
        only=args.only,
        licence_policy=args.licence_policy,
        engine=args.engine,
        shard=None if args.shard is None else Shard.parse(args.shard),
        resume=args.resume,
    )
    if isinstance(made, Stopped):
        if not args.json:
            show_stopped(made)
        return {"stage": made.stage, "folder": str(made.folder), "index": str(made.index), "stages": made.table}
    if not args.json:
        show_dataset(made)
    return {
        "dataset": str(made.root),
        "dataset_hash": made.manifest["dataset_hash"],
        "videos": len(made.videos),
        "questions": sum(len(video.qa) for video in made.videos),
        "stages": made.manifest["stages"],
    }


def _also(args: argparse.Namespace) -> list[tuple[str, Any, Any]]:
    """(name, box or None, consent record or None) of the other people to learn.

    Raises:
        PVChatError: a name, a box or a record cannot be used, or the test folder says nothing about them.
    """
    from ..dataset_builder import normalise_name
    from ..runs import given_consent

    if args.also and args.test is not None:
        raise PVChatError("--test says who is seen for one person only; with --also, test each of them later.")
    if len(args.also_consent) > len(args.also):
        raise PVChatError(f"{len(args.also_consent)} records for {len(args.also)} other people; give one for each.")
    records = [*args.also_consent, *[None] * len(args.also)]
    others = []
    for text, record in zip(args.also, records, strict=False):
        name, _, box = text.partition("@")
        name = normalise_name(name)
        consent = given_consent(record, args.i_have_consent, args.reference, name)
        others.append((name, arguments.read_box(box) if box else None, consent))
    return others
