"""What the commands print for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table


def show_intro(name: str, out: Path, stream: TextIO) -> None:
    print(
        f"pvchat learns a drawn person, {name}, from one two-second clip, on this computer, without the internet:\n"
        f"  1. dataset   81 clips and about 1,400 questions from the clip's pixels and a gallery of other people\n"
        f"  2. stage 1   still images: who is it, what do they wear\n"
        f"  3. stage 2   videos: who, what, doing what, where\n"
        f"  4. scores    on 40 clips that no step has seen, half of them of other people, look-alikes among them\n"
        f"It takes a few minutes on two cores. Everything goes to {out}; run it again and finished work is kept.\n",
        file=stream,
        flush=True,
    )


def show_plan(recipe, reference: Path, name: str, quiet: bool) -> dict[str, Any]:
    """The clips and questions that a recipe would make; checks the reference."""
    from ..dataset_builder import probe_video

    info = probe_video(reference)
    rows = [
        {"origin": row.origin, "clips": row.count, "questions": row.count * row.questions.total} for row in recipe.rows
    ]
    if not quiet:
        table = Table(title=f"{name} from {reference.name} ({info.num_frames} frames), recipe {recipe.name}")
        table.add_column("origin")
        table.add_column("clips", justify="right")
        table.add_column("questions", justify="right")
        for row in rows:
            table.add_row(row["origin"], str(row["clips"]), str(row["questions"]))
        table.add_section()
        table.add_row("total", str(recipe.num_clips), str(recipe.num_questions))
        Console().print(table)
    return {"recipe": recipe.name, "rows": rows, "clips": recipe.num_clips, "questions": recipe.num_questions}


def show_dataset(dataset) -> None:
    """Clips and questions by split and origin, and what every stage dropped and why."""
    table = Table(title=f"{dataset.subject}: {len(dataset.videos)} clips in {dataset.root}")
    for column, justify in (("split", "left"), ("origin", "left"), ("clips", "right"), ("questions", "right")):
        table.add_column(column, justify=justify)
    clips = Counter((v.split, v.origin) for v in dataset.videos)
    questions = Counter()
    for video in dataset.videos:
        questions[video.split, video.origin] += len(video.qa)
    for (split, origin), count in clips.items():
        table.add_row(split, origin, str(count), str(questions[split, origin]))
    console = Console()
    console.print(table)
    stages = Table(title="stages")
    for column in ("stage", "in", "out", "found done", "dropped", "seconds"):
        stages.add_column(column, justify="left" if column in ("stage", "dropped") else "right")
    for stage in dataset.manifest["stages"]:
        dropped = ", ".join(f"{n}x {reason}" for reason, n in stage["dropped"].items())
        numbers = (stage["in"], stage["out"], stage["resumed"])
        stages.add_row(stage["stage"], *map(str, numbers), dropped, f"{stage['seconds']:.1f}")
    console.print(stages)


def show_run(run) -> None:
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in run.seconds.items())
    if run.scores is not None:
        show_scores(run.scores)
    print(f"Adapter: {run.adapter}\nTime: {parts}")


def show_scores(scores: dict[str, Any]) -> None:
    from ..evaluation import scores_table

    Console().print(scores_table(scores))


def show_answers(answers: list[dict[str, str]]) -> None:
    print()
    for row in answers:
        print(f"  ({row['truth']:>12})  {row['question']}\n{'':>17}{row['answer']}")
