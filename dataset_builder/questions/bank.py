"""Loads, checks and samples the question bank.

Bank texts hold `{name}` where the person is meant. Answers about existence start with "Yes" or "No": whoever reads a
decision from an answer looks at its first word.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...errors import PVChatError
from ..recipe import Questions
from ..records import CATEGORIES, QA

SLOT = "{name}"


@dataclass(frozen=True)
class Bank:
    """questions and refusals by category; yes and no answers about existence. All texts name the person `{name}`."""

    questions: dict[str, tuple[str, ...]]
    yes: tuple[str, ...]
    no: tuple[str, ...]
    refusals: dict[str, tuple[str, ...]]

    def __post_init__(self):
        problems = [f"no question of category {c}" for c in CATEGORIES if not self.questions.get(c)]
        lists = {"yes": self.yes, "no": self.no}
        lists |= {f"questions of {c}": texts for c, texts in self.questions.items()}
        lists |= {f"refusals of {c}": texts for c, texts in self.refusals.items()}
        for where, texts in lists.items():
            problems += [f"{where}: {text!r} lacks {SLOT}" for text in texts if SLOT not in text]
            if len(set(texts)) != len(texts):
                problems.append(f"{where}: a text occurs twice")
        problems += [f"{text!r} does not start with Yes" for text in self.yes if not text.startswith("Yes")]
        problems += [f"{text!r} does not start with No" for text in self.no if not text.startswith("No,")]
        if problems:
            raise PVChatError(f"The question bank is not usable: {'; '.join(problems)}.")

    def _pick(self, texts: tuple[str, ...], count: int, what: str, rng: random.Random) -> list[str]:
        if count > len(texts):
            raise PVChatError(f"The recipe asks for {count} {what}, the bank has {len(texts)}; lower the count.")
        return rng.sample(texts, count)

    def existence(self, name: str, present: bool, count: int, seed: int) -> list[QA]:
        """`count` different questions, each with a different yes (present) or no answer."""
        rng = random.Random(seed)
        questions = self._pick(self.questions["existence"], count, "existence questions", rng)
        answers = self._pick(self.yes if present else self.no, count, "existence answers", rng)
        return [
            QA(fill(q, name), fill(a, name), "existence", source="template")
            for q, a in zip(questions, answers, strict=True)
        ]

    def ask(self, category: str, count: int, seed: int) -> list[str]:
        """`count` different questions of a descriptive category, still with `{name}` in them."""
        return self._pick(self.questions[category], count, f"{category} questions", random.Random(seed))

    def refuse(self, name: str, category: str, count: int, seed: int) -> list[QA]:
        """Questions about a person who is not in the clip, with answers that say so."""
        questions = self.ask(category, count, seed)
        answers = self._pick(self.refusals[category], count, f"{category} refusals", random.Random(seed + 1))
        return [
            QA(fill(q, name), fill(a, name), category, source="template")
            for q, a in zip(questions, answers, strict=True)
        ]

    def check(self, counts: Questions) -> None:
        """Raises PVChatError when the bank is too small for these counts."""
        for category in CATEGORIES:
            self.ask(category, getattr(counts, category), 0)
        self._pick(self.yes, counts.existence, "existence answers", random.Random(0))
        self._pick(self.no, counts.existence, "existence answers", random.Random(0))


def fill(text: str, name: str) -> str:
    return text.replace(SLOT, name)


@cache
def load_bank(path: Path | None = None) -> Bank:
    """Reads a bank file; without a path, the one of this package. Raises PVChatError when it is not usable."""
    path = path or Path(__file__).with_name("bank.json")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Bank(
            questions={c: tuple(data[c]["questions"]) for c in CATEGORIES},
            yes=tuple(data["existence"]["yes"]),
            no=tuple(data["existence"]["no"]),
            refusals={c: tuple(data[c]["refusals"]) for c in CATEGORIES if c != "existence"},
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise PVChatError(f"The question bank {path} cannot be read: {error!r}.") from error
