"""Scores adapters, or other video models, on the test split of a dataset, with the controls beside the score: constant
answers, no video, no adapter, another subject's adapter, the reference clip in the prompt, another name in the
question, a comparison of faces. Answers are kept one JSON line each, and a rerun asks only what is missing.

Several adapters or models give a table as well. A --model is any image-text-to-text model with a chat template that
transformers loads (Qwen/Qwen3-VL-8B-Instruct), InternVideo2-Chat or VideoLLaMA2; it is shown the reference clip.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from . import arguments

HELP = "score adapters or other video models, with controls"
EXAMPLES = (
    "pvchat evaluate runs/Nz --data runs/Nz/dataset",
    "pvchat evaluate runs/Nz runs/Ada --wrong runs/Lena --json",
    "pvchat evaluate ada/nz --data runs/Nz/dataset --wrong ada/bo",
    "pvchat evaluate runs/Nz --bertscore roberta-large --judge http://localhost:8000/v1 --judge-model Qwen/Qwen3-32B",
    "pvchat evaluate --model Qwen/Qwen3-VL-8B-Instruct --data runs/Nz/dataset",
    "pvchat evaluate --authors consisid/test_all_video.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapters", metavar="ADAPTER", nargs="*", help="run or adapter folders, or USER/NAME")
    parser.add_argument("--model", action="append", default=[], help="a folder or Hub name of another video model")
    parser.add_argument("--authors", type=Path, metavar="FILE", help="a JSON file of the paper's authors, alone")
    parser.add_argument("--data", type=Path, metavar="DATASET", help="dataset folder (default: that of each run)")
    parser.add_argument("--wrong", action="append", default=[], help="another subject's adapter, as a control")
    parser.add_argument("--out", type=Path, help="folder for scores and answers (default: report/ beside the adapter)")
    add_rating(parser)
    arguments.add_base(parser)
    arguments.add_seed(parser)


def add_rating(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bertscore", metavar="MODEL", help="encoder of BERTScore, such as roberta-large")
    parser.add_argument(
        "--bertscore-layer", type=int, metavar="N", help="its layer (default: bert-score's own choice)"
    )
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="URL",
        help="an OpenAI-compatible endpoint that rates ES and DC",
    )
    parser.add_argument(
        "--judge-model",
        action="append",
        default=[],
        metavar="NAME",
        help="its model; without --judge, a language model that is loaded here",
    )
    parser.add_argument("--judge-runs", type=int, default=1, metavar="N", help="rate N times (default: 1)")
    parser.add_argument(
        "--allow-third-party", action="store_true", help="let answers about the person go to a judge elsewhere"
    )


def rating_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_rating` asks for, as arguments of `rescore`; empty when nothing was asked for."""
    from ..evaluation.judge import open_judges

    if args.judge_runs < 1:
        raise PVChatError(f"--judge-runs must be at least 1, got {args.judge_runs}.")
    judges = open_judges(args.judge, args.judge_model, runs=args.judge_runs, allow_third_party=args.allow_third_party)
    if args.bertscore is None and args.bertscore_layer is not None:
        raise PVChatError("--bertscore-layer is a layer of --bertscore MODEL; give both.")
    if args.bertscore is None and not judges:
        return {}
    return {"bertscore": args.bertscore, "layer": args.bertscore_layer, "judges": judges, "progress": args.progress}


def run(args: argparse.Namespace) -> dict[str, Any]:
    from .show import show_scores

    if args.authors is not None:
        return _authors(args)
    if not args.adapters and not args.model:
        raise PVChatError("Pass an adapter (runs/Nz), --model NAME --data DATASET, or --authors FILE.")
    several = len(args.adapters) + len(args.model) > 1
    rating = rating_arguments(args)
    results = {}
    for place in args.adapters:
        plain = Path(place).name
        results[place] = _adapter(args, place, rating, args.out / plain if args.out and several else args.out)
    for name in args.model:
        plain = Path(name).name
        results[name] = _model(args, name, rating, args.out / plain if args.out and several else args.out)
    if not args.json:
        for result in results.values():
            show_scores(result["scores"])
            print(f"Report: {result['report']}")
    return _compared(args, results) if several else next(iter(results.values()))


def _adapter(args: argparse.Namespace, place: str, rating: dict[str, Any], out: Path | None) -> dict[str, Any]:
    from ..runs import evaluate_adapter

    adapter = arguments.find_adapter(place)
    is_ours = Path(place).exists()
    if not is_ours and args.data is None:
        raise PVChatError(f"{place} comes from the Hub without its data: say with --data what to evaluate it on.")
    if not is_ours and out is None:  # beside the adapter is a cache, in which nothing is to be written
        out = args.data.parent / f"report-{Path(place).name}"
    wrong = [arguments.find_adapter(other) for other in args.wrong]
    result = evaluate_adapter(
        adapter,
        data=args.data,
        base=args.base,
        out=out,
        wrong_adapters=[other for other in wrong if other.resolve() != adapter.resolve()],
        seed=args.seed,
        progress=args.progress,
        command=args.command_line,
    )
    if not is_ours:
        return _rated(args, result | {"run": str(out)}, rating, args.data, None)
    run = adapter.parent
    return _rated(args, result, rating, run / "dataset" if args.data is None else args.data, run)


def _model(args: argparse.Namespace, name: str, rating: dict[str, Any], out: Path | None) -> dict[str, Any]:
    import time

    from ..dataset_builder import load_local
    from ..evaluation import evaluate, write_report
    from ..evaluation.baselines import load_baseline
    from ..evaluation.reference import reference_clips

    if args.data is None:
        raise PVChatError("--model needs --data DATASET, the dataset to evaluate it on.")
    start = time.perf_counter()
    dataset = load_local(args.data)
    baseline = load_baseline(name, dataset.subject, reference_clips(dataset)[0].path)
    out = out or args.data.parent / f"report-{Path(name).name}"
    scores = evaluate(baseline, dataset, out, seed=args.seed, progress=args.progress, command=args.command_line)
    seconds = round(time.perf_counter() - start, 2)
    result = {"run": str(out), "seconds": {"evaluate": seconds, "total": seconds}, "scores": scores}
    return _rated(args, result | {"report": str(write_report(out, dataset))}, rating, args.data, None)


def _rated(
    args: argparse.Namespace, result: dict[str, Any], rating: dict[str, Any], data: Path, run: Path | None
) -> dict[str, Any]:
    """The result with BERTScore, ES and DC, if they were asked for."""
    from ..dataset_builder import load_local
    from ..evaluation import rescore, write_report

    if not rating:
        return result
    out = Path(result["report"]).parent
    scores = rescore(out / "answers.jsonl", args.command_line, args.seed, **rating)
    write_report(out, load_local(data), run)
    return result | {"scores": scores}


def _compared(args: argparse.Namespace, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    from rich.console import Console

    from ..evaluation.compare import compare, compare_table
    from ..files import write_json
    from ..passport import passport

    systems = {name: (Path(result["report"]).parent, result["scores"]) for name, result in results.items()}
    result = compare(systems, args.seed)
    config = {"systems": [Path(name).name for name in results]}
    result |= {"passport": passport(args.command_line, config, args.seed)}
    if args.out:
        write_json(args.out / "comparison.json", result)
    if not args.json:
        Console().print(compare_table(result))
    return result


def _authors(args: argparse.Namespace) -> dict[str, Any]:
    from ..evaluation.authors import score_authors
    from ..files import write_json
    from ..passport import passport
    from .show import show_scores

    if args.adapters or args.model:
        raise PVChatError("--authors scores a file of answers; leave adapters and --model out.")
    scores = score_authors(args.authors, args.seed)
    scores["passport"] = passport(args.command_line, {"authors": args.authors.name}, args.seed)
    if args.out:
        write_json(args.out / "scores.json", scores)
    if not args.json:
        show_scores(scores)
    return {"file": str(args.authors), "scores": scores}
