"""Asks every question of a split, and of its controls, and scores the answers.

    out/answers.jsonl                     one line per question
    out/controls/<name>.jsonl             the same questions, answered by a control; wrong_adapter.1.jsonl, ...
    out/ratings/                          what an encoder and judges say about the answers
    out/scores.json

Answers are kept as they come: run again, only questions that are not answered yet are asked. A line carries a key of
everything that decides it (weights, clip, question), so that answers of another model are never taken. A clip is
encoded once for all its questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import MissingBackendError, PVChatError
from ..files import write_json
from ..passport import passport
from ..session import MAX_NEW_TOKENS, VideoChat
from .controls import EmbeddingGate, TextOnly, swap_names
from .metrics import bleu
from .ratings import rate
from .reference import ReferenceFirst, reference_clips, subject_tokens_of
from .scoring import answered, score_lines
from .store import Line, collect, digest

Answer = Callable[[Sequence[Line]], list[Line]]
ADAPTER_CONTROLS = ("no_adapter", "wrong_adapter", "name_swapped")


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

    BERTScore, ES and DC are left as they were rated before, if at all; `scoring.rescore` adds them.

    Args:
        chat: a `VideoChat`, with the dataset's subject or with none (then the base is what is evaluated), or one of
            `baselines`.
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
    if chat.subject not in (None, dataset.subject):
        raise PVChatError(f"The adapter knows {chat.subject}, but the dataset is about {dataset.subject}.")
    videos = dataset.split(split)
    if not any(qa.category == "existence" for video in videos for qa in video.qa):
        raise PVChatError(f"The {split} split has no existence question; build the dataset with test clips.")
    bleu(["a"], ["a"])  # says now, not after the last answer, that a library is missing
    asking = Asking(chat, dataset, Path(out), videos, progress)
    lines = asking.answers()
    asking.run_controls(wrong_adapters)
    ratings = rate(lines, Path(out) / "ratings")
    scores = score_lines(lines, asking.controls, asking.missing, seed, ratings)
    if "embedding_gate" in asking.controls:
        scores["details"]["method"]["embedding_gate"] = asking.controls["embedding_gate"][0]["by"]
    config = {
        "split": split,
        "weights": asking.weights,
        "dataset": dataset.manifest["dataset_hash"],
        "wrong_adapters": len(wrong_adapters),
    }
    scores["passport"] = passport(command, config, seed)
    write_json(Path(out) / "scores.json", scores)
    return scores


class Asking:
    """The questions of some videos, asked and kept.

    `controls` and `missing` fill up: lines by name, and why a control was not run.
    """

    def __init__(self, chat, dataset, out: Path, videos: Sequence[Any], progress: bool):
        self.chat = chat
        self.dataset = dataset
        self.out = out
        self.progress = progress
        self.weights = _identity(chat)
        self.questions = [_line(video, qa) for video in videos for qa in video.qa]
        self.controls: dict[str, list[Line]] = {}
        self.missing: dict[str, str] = {}
        self._rows = {video.video_id: video for video in videos}
        self._kept: set[str] = set()

    def answers(self) -> list[Line]:
        """The answers of the model itself."""
        return self._collect(self.out / "answers.jsonl", self.questions, self.ask, {}, "answers")

    def ask(self, part: Sequence[Line], chat=None) -> list[Line]:
        """Lines with the answers of the chat; each clip is read once."""
        groups: dict[str, list[Line]] = {}
        for line in part:
            groups.setdefault(line["video_id"], []).append(line)
        replies = (chat or self.chat).replies(
            [self._rows[video_id].path for video_id in groups],
            [[line["question"] for line in group] for group in groups.values()],
        )
        return [
            answered(line, reply)
            for group, own in zip(groups.values(), replies, strict=True)
            for line, reply in zip(group, own, strict=True)
        ]

    def run_controls(self, wrong_adapters: Sequence[str | Path]) -> None:
        """Runs every control that this model can have; files of other evaluations are removed."""
        chat = self.chat
        self._run("text_only", TextOnly(chat))
        if chat.subject is None:
            self.missing |= dict.fromkeys(ADAPTER_CONTROLS, "the model that was evaluated has no adapter")
        else:
            self._run("name_swapped", self.ask, about=swap_names(self.questions, self.dataset))
            with chat.answering_with(None):
                self._run("no_adapter", self.ask)
        if isinstance(chat, VideoChat):
            self._run_wrong(wrong_adapters if chat.subject is not None else ())
            self._run_references()
        else:
            reason = "the model that was evaluated is a baseline that is shown the reference clip"
            self.missing |= dict.fromkeys(("wrong_adapter", "reference_in_prompt", "reference_as_tokens"), reason)
        try:
            gate = EmbeddingGate(self.dataset)
            existing = [line for line in self.questions if line["category"] == "existence"]
            self._run("embedding_gate", gate, {"by": gate.id}, existing)
        except (PVChatError, ImportError) as error:
            self.missing["embedding_gate"] = str(error)
        for path in (self.out / "controls").iterdir():
            if path.name not in self._kept:
                path.unlink()

    def _run_wrong(self, wrong_adapters: Sequence[str | Path]) -> None:
        for number, adapter in enumerate(wrong_adapters, 1):
            with self.chat.answering_with(adapter):
                self._run("wrong_adapter", self.ask, {"other": _identity(self.chat)}, file=f"wrong_adapter.{number}")
        if not wrong_adapters:
            self.missing.setdefault("wrong_adapter", "no adapter of another subject was given")

    def _run_references(self) -> None:
        """The base alone, but it is shown the reference clip."""
        try:
            shown = reference_clips(self.dataset)
        except PVChatError as error:
            self.missing |= dict.fromkeys(("reference_in_prompt", "reference_as_tokens"), str(error))
            return
        clips, own = [row.path for row in shown], {"references": [row.sha256 for row in shown]}
        with nullcontext() if self.chat.subject is None else self.chat.answering_with(None):
            try:
                first = ReferenceFirst(self.chat, clips[0], self.dataset.subject)
                self._run("reference_in_prompt", lambda part: self.ask(part, first), own)
            except PVChatError as error:
                self.missing["reference_in_prompt"] = str(error)
            with subject_tokens_of(self.chat, clips):
                self._run("reference_as_tokens", self.ask, own)

    def _run(
        self,
        name: str,
        answer: Answer,
        own: dict[str, Any] | None = None,
        about: Sequence[Line] | None = None,
        file: str = "",
    ) -> None:
        file = f"{file or name}.jsonl"
        questions = self.questions if about is None else about
        key = {"control": name} | (own or {})
        found = self._collect(self.out / "controls" / file, questions, answer, key, name.replace("_", " "))
        self._kept.add(file)
        self.controls.setdefault(name, []).extend(found)

    def _collect(self, path: Path, questions: Sequence[Line], answer: Answer, own: dict[str, Any], title: str):
        decides = {"weights": self.weights, "tokens": MAX_NEW_TOKENS} | own

        def key(line: Line) -> str:
            return digest(decides, line, self._rows[line["video_id"]].sha256)

        if own.get("control") == "embedding_gate":  # its threshold comes from the training split
            decides |= {"dataset": self.dataset.manifest["dataset_hash"]}
        return collect(path, questions, key, answer, title if self.progress else None)


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


def _identity(chat) -> str:
    """What tells the weights that answer now from others."""
    if not isinstance(chat, VideoChat):
        return chat.id
    try:
        from ..trainers.adapter import weights_hash
    except ImportError as error:
        raise MissingBackendError("Evaluation needs PEFT: pip install 'pvchat[train]'.") from error
    return weights_hash(dict(chat.model.named_parameters()))
