"""Serves subjects over an OpenAI-compatible endpoint (chat completions with `video_url`): one base in memory, a model
name per subject, adapters loaded when they are first asked for. Videos are read from allowed folders only. There is
no login: keep it on this machine, or behind a proxy that has one."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments

HELP = "serve subjects over an OpenAI-compatible endpoint"
EXAMPLES = (
    "pvchat serve runs/Nz runs/Ada --allow-dir clips",
    "pvchat serve runs/* --allow-dir clips --port 9000 --max-adapters 8",
    "pvchat serve ada/nz ada/bo --allow-dir clips",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters", metavar="ADAPTER", nargs="*", help="run or adapter folders, or USER/NAME, one per subject"
    )
    parser.add_argument(
        "--allow-dir", type=Path, action="append", default=[], metavar="DIR", help="videos are read from below it only"
    )
    arguments.add_base(parser)
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--max-adapters", type=int, default=4, help="adapters in memory (default: 4)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer (default: 256)")
    parser.add_argument("--max-queue", type=int, default=32, help="unanswered requests, others get 429 (default: 32)")
    parser.add_argument("--max-body", type=int, default=1_000_000, help="bytes of a request (default: 1000000)")


def run(args: argparse.Namespace) -> None:
    from ..errors import MissingBackendError
    from ..serve.engine import Engine
    from ..serve.videos import AllowedVideos

    try:
        import uvicorn

        from ..serve.app import Limits, create_app
    except ImportError as error:
        raise MissingBackendError("Serving needs FastAPI and uvicorn: pip install 'pvchat[serve]'.") from error
    limits = Limits(args.max_tokens, args.max_queue, args.max_body)
    videos = AllowedVideos(args.allow_dir)
    engine = Engine(args.base, [arguments.find_adapter(place) for place in args.adapters], args.max_adapters)
    if not args.json:
        print(f"Models: {', '.join(engine.models)}. Base URL: http://{args.host}:{args.port}/v1", flush=True)
    uvicorn.run(
        create_app(engine, videos, limits),
        host=args.host,
        port=args.port,
        log_level="warning" if args.quiet else "info",
    )
