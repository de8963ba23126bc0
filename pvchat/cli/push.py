"""Puts a subject's adapter on the Hub, as a plain PEFT repository with its card: private unless --public, and never
with a video. A real person must have agreed: with the record of the run, whose scope says "publish", or
--i-have-consent. Interrupted, the same command goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import arguments

HELP = "put a subject's adapter on the Hub"
EXAMPLES = (
    "pvchat push runs/Nz --repo ada/nz --dry-run",
    "pvchat push runs/Nz --repo ada/nz --base ada/pvchat-cartoon --consent nz.json --public",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="RUN", type=Path, help="run or adapter folder")
    add_repository(parser)
    parser.add_argument("--base", metavar="USER/NAME", help="its base on the Hub (default: where it was trained on)")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="USER/NAME", help="its data on the Hub, for the card"
    )
    add_consent(parser)


def add_repository(parser: argparse.ArgumentParser) -> None:
    """What every push takes."""
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the repository on the Hub")
    parser.add_argument("--public", action="store_true", help="for everybody to see (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes, send nothing")


def add_consent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--consent", type=Path, action="append", default=[], metavar="FILE", help="consent record; may be repeated"
    )
    parser.add_argument(
        "--i-have-consent", action="store_true", help="declare that everybody shown agreed to this upload"
    )


def show_push(args: argparse.Namespace, result: dict[str, Any], note: str = "") -> None:
    """Files with sizes, and where they went."""
    if args.json:
        return
    for file in result["files"]:
        print(f"{file['bytes'] / 1e6:10.3f} MB  {file['path']}")
    print(f"{result['bytes'] / 1e6:10.3f} MB  {'private' if result['private'] else 'public'}{note}")
    print(f"Nothing was sent to {args.repo}." if args.dry_run else result["url"])


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..dataset_builder.consent import read_consent
    from ..push import push_adapter

    result = push_adapter(
        arguments.adapter_folder(args.adapter),
        args.repo,
        base=args.base,
        datasets=args.dataset,
        private=not args.public,
        consents=[read_consent(path) for path in args.consent],
        i_have_consent=args.i_have_consent,
        dry_run=args.dry_run,
        progress=args.progress,
    )
    show_push(args, result)
    return result
