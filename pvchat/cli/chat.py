"""Asks about a video: one question from the command line, or a conversation that reads the video once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from . import arguments

HELP = "ask about a video"
EXAMPLES = (
    'pvchat chat runs/Nz party.mp4 "Is <Nz> here?"',
    "pvchat chat runs/Nz party.mp4",
    'pvchat chat ada/nz party.mp4 "Is <Nz> here?"',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="run or adapter folder, or USER/NAME on the Hub")
    parser.add_argument("video", metavar="VIDEO", type=Path)
    parser.add_argument("question", nargs="?", help="one question; without it, questions are read line by line")
    arguments.add_base(parser)


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    from ..session import VideoChat

    chat = VideoChat.from_pretrained(args.base, arguments.find_adapter(args.adapter))
    conversation = chat.conversation(args.video)
    if args.question is not None:
        answer = conversation.ask(args.question)
        if not args.json:
            print(answer)
        return {"question": args.question, "answer": answer}
    turns = []
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"Ask about {args.video.name}; an empty line ends.", file=sys.stderr)
    while question := _read_question(interactive):
        answer = conversation.ask(question)
        turns.append({"question": question, "answer": answer})
        if not args.json:
            print(answer)
    return {"turns": turns}


def _read_question(interactive: bool) -> str:
    try:
        return input("> " if interactive else "").strip()
    except EOFError:
        return ""
