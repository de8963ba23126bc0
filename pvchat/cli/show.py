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


def show_plan(recipe, reference: Path, name: str, quiet: bool, gallery: Path | None = None) -> dict[str, Any]:
    """The clips and questions that a recipe would make, and what its backends would need; checks the reference."""
    from dataclasses import asdict

    from ..dataset_builder import costs, probe_video
    from ..dataset_builder.backends.light.gallery import list_gallery

    info = probe_video(reference)
    rows = [
        {"origin": row.origin, "clips": row.count, "questions": row.count * row.questions.total} for row in recipe.rows
    ]
    folder = gallery if recipe.backends.get("gallery") == "folder" and gallery is not None else None
    needed = costs(recipe, None if folder is None else len(list_gallery(folder)))
    plan = {
        "recipe": recipe.name,
        "rows": rows,
        "clips": recipe.num_clips,
        "questions": recipe.num_questions,
        "stages": [asdict(cost) for cost in needed],
        "seconds": round(sum(cost.seconds or 0 for cost in needed), 1),
        "not_measured": sorted({cost.backend for cost in needed if cost.seconds is None and cost.items}),
        "memory_gb": max((cost.memory_gb for cost in needed if cost.memory_gb), default=None),
        "missing": sorted({cost.missing for cost in needed if cost.missing}),
    }
    if quiet:
        return plan
    table = Table(title=f"{name} from {reference.name} ({info.num_frames} frames), recipe {recipe.name}")
    table.add_column("origin")
    table.add_column("clips", justify="right")
    table.add_column("questions", justify="right")
    for row in rows:
        table.add_row(row["origin"], str(row["clips"]), str(row["questions"]))
    table.add_section()
    table.add_row("total", str(recipe.num_clips), str(recipe.num_questions))
    console = Console()
    console.print(table)
    _show_costs(console, plan, needed)
    return plan


def _show_costs(console: Console, plan: dict[str, Any], needed) -> None:
    table = Table(title="what the backends do, if every clip passes at once")
    for column in ("stage", "backend", "items", "seconds", "on", "GPU memory", "where the numbers come from"):
        table.add_column(column, justify="right" if column in ("items", "seconds", "GPU memory") else "left")
    for cost in needed:
        seconds = "unknown" if cost.seconds is None else f"{cost.seconds:.0f}"
        memory = "-" if cost.memory_gb is None else f"{cost.memory_gb:g} GB"
        table.add_row(cost.stage, cost.backend, str(cost.items), seconds, cost.where, memory, cost.source)
    console.print(table)
    unknown = f", without {', '.join(plan['not_measured'])}, which nobody has measured" if plan["not_measured"] else ""
    print(f"Time: about {plan['seconds'] / 60:.0f} min{unknown}. More when clips have to be made again.")
    for line in plan["missing"]:
        print(f"Not installed here: {line}")


def show_dataset(dataset) -> None:
    """Clips and questions by split and origin, and what every stage did and dropped, and why."""
    manifest = dataset.manifest
    who = dataset.subject or ", ".join(manifest["subjects"])
    table = Table(title=f"{who}: {len(dataset.videos)} clips in {dataset.root}")
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
    show_stages(manifest["stages"], console)
    print(f"Look at what was made: {dataset.root / 'contact_sheets'}")


def show_stages(rows: list[dict[str, Any]], console: Console) -> None:
    stages = Table(title="stages")
    for column in ("stage", "in", "out", "found done", "dropped", "seconds"):
        stages.add_column(column, justify="left" if column in ("stage", "dropped") else "right")
    for stage in rows:
        if stage.get("skipped"):
            stages.add_row(stage["stage"], "", "", "", f"skipped: {stage['skipped']}", "")
            continue
        dropped = ", ".join(f"{n}x {reason}" for reason, n in stage["dropped"].items())
        numbers = (stage["in"], stage["out"], stage["resumed"])
        stages.add_row(stage["stage"], *map(str, numbers), dropped, f"{stage['seconds']:.1f}")
    console.print(stages)


def show_stopped(stopped) -> None:
    """What the stages up to the last one did, and where to look."""
    show_stages(stopped.table, Console())
    print(f"Stopped after {stopped.stage}. Artefacts: {stopped.folder}\nWhich is which: {stopped.index}")


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
