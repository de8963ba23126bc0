"""Deterministic stand-ins for the judge, under names of their own: `es_rule` and `dc_rule`, both 0 to 5.

They are cheap, repeatable and crude: words are counted, nothing is understood. They are not the paper's ES and DC, and
their numbers cannot be compared with those of a judge (`judge.py`).

    es_rule   0  says the subject is there when they are not, or the reverse; or says nothing
              5  the subject is named             3  only "he", "she", "they" ...
              2  only "the man", "someone" ...    1  nobody is spoken of
    dc_rule   0  as above, else 5 times the F1 of content words, answer against gold answer
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .metrics import normalise_text
from .presence import ABSENT, PRESENT, UNKNOWN, parse_presence

NAMED, PRONOUN, GENERIC, NOBODY, WRONG = 5.0, 3.0, 2.0, 1.0, 0.0
_PRONOUNS = re.compile(r"\b(?:he|she|they|him|her|them|his|hers|their)\b")
_GENERIC = re.compile(
    r"\b(?:man|woman|person|people|someone|somebody|boy|girl|lady|guy|individual|figure|character|nobody|no one|one)\b"
)
# Words that say nothing about what is seen.
_EMPTY = frozenset(
    "a an the and or but of in on at to by for from with as is are was were be been being do does did has have had "
    "this that these those it its there here i you we he she they him her them his their me my not no yes can could "
    "will would video clip footage recording see seen shown shows appears".split()
)


def contradicts(answer: str, name: str, present: bool) -> bool:
    """Whether the answer says that the subject is there when they are not, or the reverse."""
    said = parse_presence(answer, name)
    return said != UNKNOWN and said != (PRESENT if present else ABSENT)


def es_rule(answer: str, name: str, present: bool) -> float:
    """Entity specificity by rules, 0 to 5."""
    if not answer.strip() or contradicts(answer, name, present):
        return WRONG
    text = answer.lower()
    if re.search(rf"(?<!\w){re.escape(name.strip('<>').lower())}(?!\w)", text):
        return NAMED
    if _PRONOUNS.search(text):
        return PRONOUN
    return GENERIC if _GENERIC.search(text) else NOBODY


def dc_rule(answer: str, gold: str, name: str, present: bool) -> float:
    """Descriptive completeness by rules, 0 to 5. Two answers without any content word agree."""
    if not answer.strip() or contradicts(answer, name, present):
        return WRONG
    found, wanted = _content(answer, name), _content(gold, name)
    if not found and not wanted:
        return 5.0
    shared = sum((found & wanted).values())
    return 5.0 * 2 * shared / (sum(found.values()) + sum(wanted.values()))


def _content(text: str, name: str) -> Counter[str]:
    words = re.findall(r"[^\W_]+", normalise_text(text.replace(name, " ").replace(name.strip("<>"), " ")))
    return Counter(word for word in words if word not in _EMPTY)


def rule_scores(
    answers: Sequence[str], golds: Sequence[str], names: Sequence[str], present: Sequence[bool]
) -> dict[str, np.ndarray]:
    """`es_rule` and `dc_rule` of every answer, each (N,) float64."""
    rows = list(zip(answers, golds, names, present, strict=True))
    return {
        "es_rule": np.array([es_rule(answer, name, there) for answer, _, name, there in rows], float),
        "dc_rule": np.array([dc_rule(*row) for row in rows], float),
    }
