"""What the commands of the benchmarks share: their options, and where a result goes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pvchat.files import write_json, write_text


def make_parser(name: str, doc: str, writes: str) -> argparse.ArgumentParser:
    """A parser with `--write` and `--json`.

    Args:
        name: of the module in `benchmarks`.
        doc: its docstring, with examples.
        writes: names of the files of `--write`, for its help.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=f"also write {writes} there")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser


def command_line(name: str, argv: Sequence[str] | None) -> str:
    """The command as typed, for the passport."""
    return " ".join([f"python -m benchmarks.{name}", *(sys.argv[1:] if argv is None else argv)])


def publish(result: dict[str, Any], page: str, stem: str, args: argparse.Namespace) -> None:
    """Writes `stem`.json and the page beside it if asked to, prints the page, and the result last if asked to."""
    if args.write:
        write_json(args.write / f"{stem}.json", result)
        write_text(args.write / f"{stem}.md", page)
    print(page)
    if args.json:
        print(json.dumps(result))
