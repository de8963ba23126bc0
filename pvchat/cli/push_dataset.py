"""Puts a dataset on the Hub: private unless --public, without the reference clips unless --with-reference. Real people
must have agreed: with the record of the build, whose scope says "publish", or --i-have-consent. Interrupted, the same
command goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "put a dataset on the Hub"
EXAMPLES = (
    "pvchat push-dataset runs/Nz/dataset --repo ada/nz-videos --dry-run",
    "pvchat push-dataset runs/Nz/dataset --repo ada/nz-videos --consent nz.json --public",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="dataset folder")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the repository on the Hub")
    parser.add_argument("--public", action="store_true", help="for everybody to see (default: private)")
    parser.add_argument("--with-reference", action="store_true", help="upload the reference clips, too")
    parser.add_argument(
        "--consent", type=Path, action="append", default=[], metavar="FILE", help="consent record; may be repeated"
    )
    parser.add_argument(
        "--i-have-consent", action="store_true", help="declare that everybody shown agreed to this upload"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes, send nothing")


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
    if not args.json:
        for file in result["files"]:
            print(f"{file['bytes'] / 1e6:10.3f} MB  {file['path']}")
        visible = "private" if result["private"] else "public"
        print(f"{result['bytes'] / 1e6:10.3f} MB  {visible}; reference clips left out: {result['left_out']}")
        print(f"Nothing was sent to {args.repo}." if args.dry_run else result["url"])
    return result
