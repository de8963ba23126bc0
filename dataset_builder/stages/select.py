"""select: which frame shows the person best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine import Artefact, Rejected, Stage, Task
from ..people import Footage, PersonFiles
from .common import Build


def select(build: Build, people: Sequence[Footage]) -> list[Footage]:
    """Those without a usable still are dropped."""
    stage = Stage("select", 1, build.backends.quality.id, ".json")
    tasks = [Task(stage, f.label, make_choice, {"files": f.files}, {"frames": f.frames}, f.hashes) for f in people]
    return [
        replace(footage, best=choice.meta["best"])
        for footage, choice in zip(people, build.engine.map(tasks), strict=True)
        if isinstance(choice, Artefact)
    ]


def make_choice(target: Path, backends: Any, files: PersonFiles) -> dict:
    """Writes the scores of all frames."""
    reports = backends.quality.score(files.load())
    usable = [index for index, report in enumerate(reports) if not report.reasons]
    if not usable:
        raise Rejected(f"no usable still: {reports[0].reasons[0]}")
    target.write_text(json.dumps([report.score for report in reports]), encoding="utf-8")
    return {"best": max(usable, key=lambda index: reports[index].score)}
