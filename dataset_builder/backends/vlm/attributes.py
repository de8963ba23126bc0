"""Role AttributeClassifier by a QAWriter: gender and age group, with the freedom to abstain. Children are refused.

Guessing these from a face is sensitive: it is for people who asked for it, and what the user says comes first.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import numpy as np

from ....errors import PVChatError
from ...consent import MINORS
from ...protocols import Attributes, Person, QAWriter
from ...video_io import write_video

GENDERS = ("male", "female")
AGES = ("young", "middle-aged", "elderly")
ADULT, YOUNG_UNTIL, MIDDLE_UNTIL = 18, 35, 60  # years: young is under 35, middle-aged up to 60 (the authors' prompt)

JSON_PROMPT = (
    'Look at the main person in this video and reply with one JSON object and nothing else: {"gender": ..., "age": '
    '...}. The gender is "male", "female" or null. The age is "child", "young", "middle-aged", "elderly" or null. Use '
    "null wherever you are not sure."
)
# The paper's two-word question in our words, and the one that is asked when the first answer names no age.
WORDS_PROMPTS = (
    'Describe the main person in this video by two words: the gender ("male", "female" or "unknown") and the age '
    'group ("child", "young", "middle-aged", "elderly" or "unknown").',
    "Which age group does the main person in this video belong to: child (under 18), young (18 to 35), middle-aged "
    "(35 to 60), elderly (over 60) or unknown?",
)

# Whole words only: "female" holds "male", and "woman" holds "man".
_GENDER_WORDS = {
    "female": "female", "woman": "female", "lady": "female", "male": "male", "man": "male", "gentleman": "male",
}  # fmt: skip
_AGE_WORDS = {
    "young": "young", "middle-aged": "middle-aged", "elderly": "elderly", "old": "elderly", "senior": "elderly",
}  # fmt: skip
# "12 years old", "a 16-year-old", "age: 17", "male, 17"; not the years of an age group such as "young (18 to 35)".
_YEARS = re.compile(
    r"\b(\d{1,3})[\s-]*(?:years?|yrs?)[\s-]*old\b|\baged?\W{1,4}(?:is\s+)?(\d{1,3})\b|^\W*(?:[a-z]+\W+)?(\d{1,3})\W*$"
)


class VLMAttributes:
    """writer: any QAWriter. style: "json", or "words" as in the paper."""

    def __init__(self, writer: QAWriter, style: str = "json"):
        if style not in ("json", "words"):
            raise PVChatError(f'The style of attributes is "json" or "words", got {style!r}.')
        self.writer = writer
        self.style = style
        self.id = f"vlm-{style}@1:{writer.id}"
        self.licences = tuple(getattr(writer, "licences", ()))

    def classify(self, person: Person) -> Attributes:
        """What the model is sure of; None for the rest. Raises PVChatError when it sees a child."""
        prompts = (JSON_PROMPT,) if self.style == "json" else WORDS_PROMPTS
        frames = person.frames if len(person.frames) > 1 else np.repeat(person.frames, 2, axis=0)
        height, width = (side - side % 2 for side in frames.shape[1:3])
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "person.mp4"
            write_video(clip, frames[:, :height, :width], person.fps)
            replies = self.writer.write(clip, prompts)
        if self.style == "json":
            gender, age = parse_json(replies[0])
        else:
            (gender, age), (_, asked_again) = map(parse_words, replies)
            age = age or asked_again
        return Attributes(gender, age, self.writer.id)


def parse_json(reply: str) -> tuple[str | None, str | None]:
    """(gender, age) of the first JSON object in the reply; without one, as `parse_words` does.

    Raises PVChatError when the age is that of a child. An age in years is turned into its group.
    """
    for match in re.finditer(r"\{[^{}]*\}", reply):
        try:
            found = json.loads(match[0])
        except ValueError:
            continue
        gender, age = found.get("gender"), found.get("age")
        gender = parse_words(str(gender))[0] if gender is not None else None
        if isinstance(age, int | float) and not isinstance(age, bool):
            return gender, _age_group(age)
        return gender, parse_words(str(age))[1] if age is not None else None
    return parse_words(reply)


def parse_words(reply: str) -> tuple[str | None, str | None]:
    """(gender, age) named in free text; None where nothing, or more than one of the choices, is named.

    Raises PVChatError when a child is named.
    """
    text = re.sub(r"\bmiddle[\s-]*aged?\b", "middle-aged", reply.lower())
    ages = {_age_group(int(match[match.lastindex])) for match in _YEARS.finditer(text)}
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", re.sub(r"(?:years?|yrs?)[\s-]*old\b", " ", text))
    minors = sorted(MINORS.intersection(words))
    if minors:
        _refuse(minors[0])
    ages |= {_AGE_WORDS[word] for word in words if word in _AGE_WORDS}
    genders = {_GENDER_WORDS[word] for word in words if word in _GENDER_WORDS}
    return genders.pop() if len(genders) == 1 else None, ages.pop() if len(ages) == 1 else None


def _age_group(years: float) -> str:
    if years < ADULT:
        _refuse(f"{years:g} years old")
    return AGES[(years >= YOUNG_UNTIL) + (years > MIDDLE_UNTIL)]


def _refuse(seen: str) -> None:
    raise PVChatError(
        f"The person looks like a minor to the model ({seen}), and minors are refused. If the person is an adult, "
        f"state gender and age yourself instead of having them guessed."
    )
