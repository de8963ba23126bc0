"""Asks every question of a split, and of its controls, and scores the answers.

    out/answers.jsonl                     one line per question
    out/controls/<name>.jsonl             the same questions, answered by a control; wrong_adapter.1.jsonl, ...
    out/scores.json

Answers are kept as they come: run again, only questions that are not answered yet are asked. A line carries a key of
everything that decides it (weights, dataset, split), so that answers of another model are never taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import MissingBackendError, PVChatError
from ..files import write_text
from ..passport import passport
from ..session import MAX_NEW_TOKENS, VIDEOS_AT_ONCE
from .controls import EmbeddingGate, TextOnly
from .metrics import bleu
from .scoring import Line, answered, score_lines

Answer = Callable[[Sequence[Line]], list[Line]]


def evaluate(
    chat,
    dataset,
    out: str | Path,
    *,
    split: str = "test",
    wrong_adapters: Sequence[str | Path] = (),
    seed: int = 0,
    progress: bool = False,
    command: str = "pvchat.evaluation.evaluate()",
) -> dict[str, Any]:
    """Evaluates a model on a dataset with its controls and returns what `scores.json` holds.

    Args:
        chat: a `VideoChat`, with the dataset's subject or with none (then the base is what is evaluated).
        dataset: a `LocalDataset`.
        out: folder of the answers and scores; answers that are already there are kept.
        wrong_adapters: adapter folders of other subjects on the same base.
        seed: of the resampling for intervals.
        progress: show bars.
        command: what was typed, for the passport.

    Raises:
        PVChatError: the split is empty or has no existence question, the chat knows another subject, an adapter does
            not fit, or a clip cannot be read.
        MissingBackendError: a library for evaluation is not installed.
    """
    out = Path(out)
    if chat.subject not in (None, dataset.subject):
        raise PVChatError(f"The adapter knows {chat.subject}, but the dataset is about {dataset.subject}.")
    videos = dataset.split(split)
    if not any(qa.category == "existence" for video in videos for qa in video.qa):
        raise PVChatError(f"The {split} split has no existence question; build the dataset with test clips.")
    bleu(["a"], ["a"])  # says now, not after the last answer, that a library is missing
    weights = _weights_hash(chat)
    key = {"weights": weights, "dataset": dataset.manifest["dataset_hash"], "split": split, "tokens": MAX_NEW_TOKENS}
    paths = {video.video_id: video.path for video in videos}
    questions = [_line(video, qa) for video in videos for qa in video.qa]

    def ask(part: Sequence[Line]) -> list[Line]:
        groups: dict[str, list[Line]] = {}
        for line in part:
            groups.setdefault(line["video_id"], []).append(line)
        replies = chat.replies(
            [paths[video_id] for video_id in groups], [[line["question"] for line in g] for g in groups.values()]
        )
        return [
            answered(line, reply)
            for group, own in zip(groups.values(), replies, strict=True)
            for line, reply in zip(group, own, strict=True)
        ]

    lines = collect(out / "answers.jsonl", questions, key, ask, "answers" if progress else None)
    folder = out / "controls"
    folder.mkdir(exist_ok=True)
    kept: set[str] = set()
    asked: dict[str, list[Line]] = {}
    missing: dict[str, str] = {}

    def run(name: str, answer: Answer, own: dict[str, Any], about: Sequence[Line] = questions, file: str = "") -> None:
        file = f"{file or name}.jsonl"
        found = collect(folder / file, about, key | own, answer, name.replace("_", " ") if progress else None)
        kept.add(file)
        asked.setdefault(name, []).extend(found)

    run("text_only", TextOnly(chat), {"control": "text_only"})
    if chat.subject is None:
        missing |= dict.fromkeys(("no_adapter", "wrong_adapter"), "the model that was evaluated has no adapter")
    else:
        with chat.answering_with(None):
            run("no_adapter", ask, {"control": "no_adapter"})
        for number, adapter in enumerate(wrong_adapters, 1):
            with chat.answering_with(adapter):
                other = {"control": "wrong_adapter", "other": _weights_hash(chat)}
                run("wrong_adapter", ask, other, file=f"wrong_adapter.{number}")
        if not wrong_adapters:
            missing["wrong_adapter"] = "no adapter of another subject was given"
    try:
        existing = [line for line in questions if line["category"] == "existence"]
        run("embedding_gate", EmbeddingGate(dataset), {"control": "embedding_gate"}, existing)
    except (PVChatError, ImportError) as error:
        missing["embedding_gate"] = str(error)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()  # of an earlier evaluation
    scores = score_lines(lines, asked, missing, seed)
    config = {"split": split, "weights": weights, "dataset": key["dataset"], "wrong_adapters": len(wrong_adapters)}
    scores["passport"] = passport(command, config, seed)
    write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    return scores


def collect(
    path: Path, questions: Sequence[Line], key: dict[str, Any], answer: Answer, title: str | None
) -> list[Line]:
    """Answers to all questions, in order; those of earlier runs with the same key are read back.

    New answers are appended to `<path>.part` a few videos at a time; at the end the file is written whole.

    Args:
        answer: from some question lines to their answered lines.
        title: of the progress bar; `None` for no bar.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    known = {line["qa_id"]: line for file in (path, part) for line in _earlier(file) if line.get("key") == digest}
    open_questions = [line for line in questions if line["qa_id"] not in known]
    with open(part, "a", encoding="utf-8") as file, tqdm(
        total=len(questions), initial=len(questions) - len(open_questions), desc=title, unit="question",
        disable=title is None,
    ) as bar:  # fmt: skip
        if file.tell():
            file.write("\n")  # ends a line that was cut off
        for chunk in _by_videos(open_questions):
            for line in answer(chunk):
                known[line["qa_id"]] = line | {"key": digest}
                file.write(json.dumps(known[line["qa_id"]], ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(chunk))
    lines = [known[line["qa_id"]] for line in questions]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    part.unlink()
    return lines


def _earlier(path: Path) -> Iterator[Line]:
    """Whole lines of an answers file; what was cut off or damaged is asked again."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "qa_id" in line:
            yield line


def _by_videos(questions: Sequence[Line]) -> Iterator[list[Line]]:
    """Questions of VIDEOS_AT_ONCE videos at a time."""
    groups: dict[str, list[Line]] = {}
    for line in questions:
        groups.setdefault(line["video_id"], []).append(line)
    ids = list(groups)
    for start in range(0, len(ids), VIDEOS_AT_ONCE):
        yield [line for video_id in ids[start : start + VIDEOS_AT_ONCE] for line in groups[video_id]]


def _line(video, qa) -> Line:
    return {
        "qa_id": qa.qa_id,
        "video_id": video.video_id,
        "subject": video.subject,
        "split": video.split,
        "category": qa.category,
        "question": qa.question,
        "gold": qa.answer,
        "source": qa.source,
        "present": video.subject_present,
        "origin": video.origin,
    }


def _weights_hash(chat) -> str:
    try:
        from ..trainers.adapter import weights_hash
    except ImportError as error:
        raise MissingBackendError("Evaluation needs PEFT: pip install 'pvchat[train]'.") from error
    return weights_hash(dict(chat.model.named_parameters()))
