"""One HTML page about a subject: verdict, scores beside their controls, curves, clips with answers, data, passport.

The page holds its pictures, so that it can be sent as one file; the figures are also saved beside it as PNG.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingBackendError, PVChatError
from ..files import write_bytes, write_text
from ..modeling_pvchat.video_processing_pvchat import frame_indices, read_video
from .findings import p_value
from .head_activation import in_words, read_head_activation
from .metrics import normalise_text
from .presence import ABSENT, PRESENT, parse_presence
from .scoring import Line, read_lines
from .table import (
    COLUMNS,
    LOWER_IS_BETTER,
    absences,
    methods,
    number,
    score_rows,
    text_rows,
    verdict,
)

STAGES = ("stage1", "stage2")
WITHOUT = "without_sparsity"  # beside the stages: the same training without SPR and HAE, where a run has it
FILM_CLIPS = 8
FILM_FRAMES = 4
FRAME_HEIGHT = 112  # pixels
ORIGIN_TITLES = {
    "original": "the reference clip",
    "scene": "subject in a new scene",
    "portrait": "subject, new portrait",
    "animated": "subject, animated portrait",
    "hard_negative": "look-alikes",
    "random_negative": "strangers",
    "user": "given clips",
}


def write_report(out: str | Path, dataset, run: str | Path | None = None) -> Path:
    """Writes `index.html` and the figures into an evaluation folder and returns the page's path.

    Args:
        out: folder with `scores.json` and `answers.jsonl` of `evaluate`.
        dataset: the `LocalDataset` that was evaluated on.
        run: the run folder; `stage1/history.json` and `stage2/history.json` in it, where they exist, give the training
            curves, and those in its `without_sparsity/` the curves to compare them with.

    Raises:
        PVChatError: the folder holds no evaluation, or a clip cannot be read.
        MissingBackendError: matplotlib or jinja2 is not installed.
    """
    try:
        import matplotlib
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        from . import figures
    except ImportError as error:
        raise MissingBackendError("The report needs matplotlib and jinja2: pip install 'pvchat[eval]'.") from error
    out = Path(out)
    scores = _read_json(out / "scores.json")
    lines = read_lines(out / "answers.jsonl")
    histories, without = ([], []) if run is None else (read_histories(Path(run) / part) for part in ("", WITHOUT))
    activation = read_head_activation(out)
    subject = scores["details"]["subject"]
    drawings: dict[str, Callable] = {"controls": lambda: figures.systems(scores)}
    if histories:
        drawings["training"] = lambda: figures.training(histories, without)
    if activation.get("difference"):
        drawings["heads"] = lambda: figures.head_maps(activation, subject)
    if scores["existence"]["auroc"] is not None:
        drawings["margins"] = lambda: figures.margins(lines, subject)
        drawings["roc"] = lambda: figures.roc(lines)
    pictures = {}
    with matplotlib.rc_context(figures.STYLE):
        for name, draw in drawings.items():
            buffer = io.BytesIO()
            draw().savefig(buffer, format="png")
            write_bytes(out / f"{name}.png", buffer.getvalue())
            pictures[name] = _uri(buffer.getvalue(), "png")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        subject=subject,
        scores=scores,
        verdict=verdict(scores),
        columns=COLUMNS,
        lower=LOWER_IS_BETTER,
        systems=score_rows(scores),
        texts=text_rows(scores),
        findings=scores["details"]["findings"],
        notes=[*methods(scores), *absences(scores)],
        number=number,
        p_value=p_value,
        pictures=pictures,
        compared=bool(without),
        heads=in_words(activation, subject),
        film=filmstrip(lines, dataset),
        origins=origin_rows(dataset),
        dataset=dataset.manifest,
        passport=json.dumps(scores["passport"], indent=2),
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def read_histories(run: Path) -> list[dict[str, Any]]:
    """Training histories of the stages of a run that took a step."""
    paths = (run / name / "history.json" for name in STAGES)
    return [history for history in map(_read_json, filter(Path.exists, paths)) if history["steps"]]


def filmstrip(lines: Sequence[Line], dataset) -> list[dict[str, Any]]:
    """Test clips of every kind, right and wrong answers alike: frames as a picture, and one question of each category.

    Returns:
        `picture`, `title`, `present`, and `answers`: question, answer, gold, and `right` (None: not decided by rules).
    """
    by_video: dict[str, list[Line]] = {}
    for line in lines:
        by_video.setdefault(line["video_id"], []).append(line)
    kinds: dict[str, list[str]] = {}
    for video_id, own in by_video.items():
        kinds.setdefault(f"{own[0]['present']} {own[0]['origin']}", []).append(video_id)
    queues = [list(ids) for _, ids in sorted(kinds.items(), reverse=True)]
    chosen: list[str] = []
    while len(chosen) < FILM_CLIPS and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue]  # one of each kind in turn
    chosen = sorted(chosen[:FILM_CLIPS], key=lambda video_id: not by_video[video_id][0]["present"])
    rows = {row.video_id: row for row in dataset.videos}
    film = []
    for video_id in chosen:
        own = by_video[video_id]
        first = {line["category"]: line for line in reversed(own)}
        film.append(
            {
                "picture": strip_of(rows[video_id].path),
                "title": _title(own[0]["origin"]) if not own[0]["present"] else own[0]["subject"],
                "present": own[0]["present"],
                "answers": [
                    {**first[category], "right": _is_right(first[category])}
                    for category in ("existence", "appearance", "action", "location")
                    if category in first
                ],
            }
        )
    return film


def _is_right(line: Line) -> bool | None:
    said = parse_presence(line["answer"], line["subject"])
    if line["category"] == "existence":
        return said == (PRESENT if line["present"] else ABSENT)
    if not line["present"]:
        return said == ABSENT
    if line["source"] == "truth":
        return normalise_text(line["answer"]) == normalise_text(line["gold"])
    return None


def origin_rows(dataset) -> list[dict[str, Any]]:
    """One row per split and origin: how many clips, with and without the subject, questions, and a frame."""
    rows = []
    for split in ("train", "test"):
        videos = dataset.split(split)
        counts = Counter((not video.subject_present, video.origin) for video in videos)
        for (absent, origin), count in sorted(counts.items()):
            own = [video for video in videos if (not video.subject_present, video.origin) == (absent, origin)]
            rows.append(
                {
                    "split": split,
                    "title": _title(origin),
                    "present": not absent,
                    "clips": count,
                    "questions": sum(len(video.qa) for video in own),
                    "picture": strip_of(own[0].path, frames=1, height=56),
                }
            )
    return rows


def _title(origin: str) -> str:
    return ORIGIN_TITLES.get(origin, origin)


def strip_of(path: Path, frames: int = FILM_FRAMES, height: int = FRAME_HEIGHT) -> str:
    """Evenly spaced frames side by side, as a data URI.

    Raises:
        PVChatError: the clip cannot be read.
    """
    from PIL import Image

    try:
        pixels, _ = read_video(path, lambda total: frame_indices(total, frames))
    except ValueError as error:
        raise PVChatError(str(error)) from error
    width = round(pixels.shape[2] * height / pixels.shape[1])
    images = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in pixels]
    gap = np.full((height, 3, 3), 255, np.uint8)
    parts = [part for image in images for part in (np.asarray(image), gap)][:-1]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(buffer, format="JPEG", quality=88)
    return _uri(buffer.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PVChatError(f"{path} cannot be read ({error}); train and evaluate the subject first.") from error
