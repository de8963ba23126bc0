"""Puts a dataset on the Hub: private unless --public, without the reference clips unless --with-reference. Real people
must have agreed: with the record of the build, whose scope says "publish", or --i-have-consent. Interrupted, the same
command goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .push import add_consent, add_repository, show_push

HELP = "put a dataset on the Hub"
EXAMPLES = (
    "pvchat push-dataset runs/Nz/dataset --repo ada/nz-videos --dry-run",
    "pvchat push-dataset runs/Nz/dataset --repo ada/nz-videos --consent nz.json --public",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="dataset folder")
    add_repository(parser)
    parser.add_argument("--with-reference", action="store_true", help="upload the reference clips, too")
    add_consent(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..dataset_builder.consent import read_consent
    from ..dataset_builder.publish import push_dataset

    result = push_dataset(
        args.dataset,
        args.repo,
        private=not args.public,
        with_reference=args.with_reference,
        consents=[read_consent(path) for path in args.consent],
        i_have_consent=args.i_have_consent,
        dry_run=args.dry_run,
        progress=args.progress,
    )
    show_push(args, result, f"; reference clips left out: {result['left_out']}")
    return result
