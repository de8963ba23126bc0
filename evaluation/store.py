"""Answers and ratings, one JSON line each, kept as they come: what is there is never asked again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import PVChatError
from ..files import write_text
from ..session import VIDEOS_AT_ONCE

Line = dict[str, Any]


def digest(*parts: Any) -> str:
    """16 hex digits that tell these JSON-able values from others."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def collect(
    path: Path,
    questions: Sequence[Line],
    key: Callable[[Line], str],
    answer: Callable[[Sequence[Line]], list[Line]],
    title: str | None,
    videos: int = VIDEOS_AT_ONCE,
) -> list[Line]:
    """Answers to all questions, in order; those of earlier runs with the same key are read back.

    New answers are appended to `<path>.part` a few videos at a time; at the end the file is written whole.

    Args:
        key: of everything that decides the answer to a question.
        answer: from some question lines to their answered lines. A line that comes back with a `key` of its own keeps
            it, and is asked again next time.
        title: of the progress bar; `None` for no bar.
        videos: how many are answered together.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    keys = {line["qa_id"]: key(line) for line in questions}
    known = {
        line["qa_id"]: line
        for file in (path, part)
        for line in earlier(file)
        if line.get("key") == keys.get(line["qa_id"], "")
    }
    open_questions = [line for line in questions if line["qa_id"] not in known]
    with open(part, "a", encoding="utf-8") as file, tqdm(
        total=len(questions), initial=len(questions) - len(open_questions), desc=title, unit="question",
        disable=title is None,
    ) as bar:  # fmt: skip
        if file.tell():
            file.write("\n")  # ends a line that was cut off
        for chunk in _by_videos(open_questions, videos):
            for line in answer(chunk):
                known[line["qa_id"]] = {"key": keys[line["qa_id"]]} | line
                file.write(json.dumps(known[line["qa_id"]], ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(chunk))
    lines = [known[line["qa_id"]] for line in questions]
    write_lines(path, lines)
    part.unlink()
    return lines


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def earlier(path: Path) -> Iterator[Line]:
    """Whole lines of a file; what was cut off or damaged is asked again."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "qa_id" in line:
            yield line


def read_lines(path: str | Path, fields: Sequence[str]) -> list[Line]:
    """Lines of a file that have these fields. A last line that was cut off while it was written is left out.

    Raises:
        PVChatError: the file is missing or holds something else.
    """
    path = Path(path)
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PVChatError(f"{path} cannot be read ({error}); evaluate the adapter first.") from error
    lines = []
    for number, text in enumerate(texts[:-1], 1):
        try:
            line = json.loads(text)
            lacking = [name for name in fields if name not in line]
        except (ValueError, TypeError):
            lacking = ["JSON"]
        if lacking:
            raise PVChatError(f"{path}, line {number}, has no {', '.join(lacking)}; evaluate the adapter again.")
        lines.append(line)
    return lines


def _by_videos(questions: Sequence[Line], videos: int) -> Iterator[list[Line]]:
    """Questions of so many videos at a time."""
    groups: dict[str, list[Line]] = {}
    for line in questions:
        groups.setdefault(line["video_id"], []).append(line)
    ids = list(groups)
    for start in range(0, len(ids), videos):
        yield [line for video_id in ids[start : start + videos] for line in groups[video_id]]
