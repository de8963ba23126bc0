"""Puts a base model on the Hub with its processor, its card and the code that `trust_remote_code=True` runs: private
unless --public. The weights are not loaded. Interrupted, the same command goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .push import add_repository, show_push

HELP = "put a base model on the Hub"
EXAMPLES = (
    "pvchat push-model converted/ --repo ada/pvchat-8b --licence mit --dry-run",
    "pvchat push-model converted/ --repo ada/pvchat-8b --licence mit --public",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", type=Path, nargs="?", help="checkpoint folder (default: the embedded pvchat-cartoon)"
    )
    add_repository(parser)
    parser.add_argument("--licence", help="such as apache-2.0 (default: what README.md beside the weights says)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..push import push_model
    from ..session import EMBEDDED_BASE

    result = push_model(
        args.model or EMBEDDED_BASE,
        args.repo,
        licence=args.licence,
        private=not args.public,
        dry_run=args.dry_run,
        progress=args.progress,
    )
    show_push(args, result)
    return result
