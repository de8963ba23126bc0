"""The people that a folder of runs knows. `remove` deletes everything derived from one of them (runs, adapters,
datasets, their rows in datasets of several people, build caches), then reads what is left for the name and for hashes
of what was deleted; it ends with code 1 when something is left. Copies elsewhere or on the Hub are not seen."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import PVChatError

HELP = "list, show or remove the people known here"
EXAMPLES = (
    "pvchat subjects list",
    "pvchat subjects show Nz --runs runs",
    "pvchat subjects remove Nz --dry-run",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "show", "remove"))
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the person, for show and remove")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder to look in (default: runs)")
    parser.add_argument(
        "--reference", type=Path, metavar="REF.mp4", help="their video, to find caches of builds that were stopped"
    )
    parser.add_argument("--dry-run", action="store_true", help="remove: say what would go, and stop")
    parser.add_argument("--yes", action="store_true", help="remove: do not ask")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from ..subjects import find_subjects, get_subject

    if args.action == "list":
        people = [subject.to_json() for subject in find_subjects(args.runs).values()]
        if not args.json:
            show_list(people)
        return {"runs": str(args.runs), "subjects": people}
    if args.name is None:
        raise PVChatError(f"Say who: pvchat subjects {args.action} NAME.")
    if args.action == "remove":
        return remove(args)
    person = get_subject(args.runs, args.name).to_json()
    if not args.json:
        for key, value in person.items():
            print(f"{key:14} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return person


def remove(args: argparse.Namespace) -> dict[str, Any]:
    from ..subjects import remove_subject

    plan = remove_subject(args.runs, args.name, reference=args.reference, dry_run=True)
    if not args.json:
        show_plan(plan)
    if args.dry_run:
        return plan
    if not args.yes and not confirmed(plan):
        raise PVChatError(f"Nothing was deleted of {plan['name']}.")
    result = remove_subject(args.runs, args.name, reference=args.reference)
    left = result["scan"]["left"]
    if left:
        if args.json:
            print(json.dumps(result, ensure_ascii=False))
        named = "; ".join(f"{found['path']} {found['why']}" for found in left[:5])
        more = f"; and {len(left) - 5} more" if len(left) > 5 else ""
        raise PVChatError(
            f"{len(left)} file(s) are left that are not ours to delete ({named}{more}); look at them yourself."
        )
    if not args.json:
        print(f"{result['name']} is gone: {result['scan']['files']} remaining files read, no trace left.")
    return result


def confirmed(plan: dict[str, Any]) -> bool:
    """Asks on a terminal. Raises PVChatError where nobody can answer."""
    if not sys.stdin.isatty():
        raise PVChatError(f"Nobody is here to ask whether to remove {plan['name']}; pass --yes.")
    print(f"Delete this for good? Type {plan['name'].strip('<>')} to go on: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().strip("<>") == plan["name"].strip("<>")


def show_list(people: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(people)} known")
    for column in ("name", "runs", "datasets", "shared datasets", "adapters", "MB", "consent"):
        table.add_column(column, justify="left" if column in ("name", "consent") else "right")
    for person in people:
        counts = [str(len(person[key])) for key in ("runs", "datasets", "shared", "adapters")]
        table.add_row(person["name"], *counts, f"{person['bytes'] / 1e6:.1f}", person["consent_state"])
    Console().print(table)


def show_plan(plan: dict[str, Any]) -> None:
    for item in plan["deleted"]:
        print(f"delete   {item['path']} ({item['files']} files, {item['bytes'] / 1e6:.1f} MB)")
    for item in plan["rewritten"]:
        print(f"rewrite  {item['dataset']} without {item['clips']} clips")
    for path in plan["retrain"]:
        print(f"retrain  {path}: it learned from clips of {plan['name']} as somebody else")
    for path in plan["kept"]:
        print(f"keep     {path}: somebody's own files")
