"""The command `pvchat`: parsers here, one module per command, each of which calls one public function.

Exit codes: 0 done, 1 the user's mistake (one line), 2 a defect of ours (traceback), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from ..errors import PVChatError
from . import (
    ablate,
    build,
    chat,
    convert,
    demo,
    evaluate,
    export_lmms_eval,
    personalize,
    personalize_many,
    push,
    push_dataset,
    push_model,
    score,
    serve,
    subjects,
    train,
)

COMMANDS = (
    demo, personalize, personalize_many, build, train, evaluate, score, ablate, chat, serve, subjects, convert,
    export_lmms_eval, push, push_model, push_dataset,
)  # fmt: skip


class UsageError(Exception):
    """Wrong words on the command line; the message holds the usage as well."""


class Parser(argparse.ArgumentParser):
    """Reports wrong usage as the user's mistake (exit code 1) instead of argparse's 2."""

    def error(self, message: str):
        raise UsageError(f"{message}. See `{self.prog} --help`.")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pvchat",
        description="Teach a video language model to recognise one person from one reference video.",
        epilog="start with: pvchat demo",
    )
    parser.add_argument("--version", action="version", version=f"pvchat {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for module in COMMANDS:
        name = module.__name__.rsplit(".", 1)[-1].replace("_", "-")
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=f"{examples(module.EXAMPLES)}\n\n{module.__doc__.strip()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object last, and no tables")
        sub.add_argument("--quiet", action="store_true", help="no progress bars (they also stay off in a pipe)")
        sub.set_defaults(run=module.run)
    return parser


def examples(lines: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser().parse_args(words)
        args.progress = sys.stderr.isatty() and not args.quiet
        args.command_line = "pvchat " + " ".join(words)
        calm_libraries()
        result = args.run(args)
        if args.json and result is not None:
            print(json.dumps(result, ensure_ascii=False))
        return 0
    except (PVChatError, UsageError) as error:
        print(f"pvchat: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pvchat: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        print("pvchat: this is a defect of pvchat; please report it with the lines above", file=sys.stderr)
        return 2


def calm_libraries() -> None:
    """Keeps other packages' bars, hints and telemetry out of the output."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        import datasets

        datasets.disable_progress_bars()
    except ImportError:
        pass
