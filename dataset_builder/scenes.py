"""Scenes for the generators of clips and portraits: a prompt, and what is known to be true about its clip.

    scene = draw_scene(seed=3, noun="woman")
    scene.prompt        "A woman wearing ... is reading a book in a library. ..."
    scene.truth         {"appearance": "{name} is wearing ...", "action": ..., "location": ...}

The bank is `scenes.json`: kinds of settings, each with places, attire, actions and lights that fit together. No text
says more about a person than the noun that the subject's record gives; there are no scenes of children.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from ._random import generator

SLOTS = ("attire", "place", "action", "light")
ANSWERS = {
    "appearance": "{{name}} is wearing {attire}.",
    "action": "{{name}} is {action}.",
    "location": "{{name}} is {place}.",
}
DRIVER_ACTIONS = {
    "yes": "nodding",
    "no": "shaking the head",
    "query": "tilting the head",
    "smile": "smiling",
    "angry": "making an angry face",
}


@dataclass(frozen=True)
class Scene:
    """noun: the word for the person. attire, place, action, light: phrases of the bank."""

    noun: str
    attire: str
    place: str
    action: str
    light: str

    @property
    def prompt(self) -> str:
        article = "An" if self.noun[0] in "aeiou" else "A"
        return _bank()["prompt"].format(article=article, **vars(self))

    @property
    def truth(self) -> dict[str, str]:
        """category -> answer with "{name}"."""
        return {category: answer.format(**vars(self)) for category, answer in ANSWERS.items()}


def draw_scene(seed: int, noun: str = "person") -> Scene:
    """The same seed and noun give the same scene. Raises PVChatError when the noun is not one lower-case word."""
    if not re.fullmatch(r"[a-z]+", noun):
        raise PVChatError(f"The noun {noun!r} must be one lower-case word such as person, woman or man.")
    rng = generator("scene", seed)
    settings = _bank()["settings"]
    setting = settings[int(rng.integers(len(settings)))]
    return Scene(noun, **{slot: setting[slot][int(rng.integers(len(setting[slot])))] for slot in SLOTS})


def find_scene(prompt: str) -> Scene | None:
    """The scene whose prompt this is, or None when the prompt is not from the bank."""
    found = _pattern().fullmatch(prompt)
    return None if found is None else Scene(**{slot: found[slot] for slot in ("noun", *SLOTS)})


def prompt_and_truth(prompt: str, seed: int) -> tuple[str, dict[str, str] | None]:
    """What a generator is told: the prompt, or one drawn by the seed when it is empty; and the truth when the prompt
    is from the bank, else None."""
    scene = find_scene(prompt) if prompt else draw_scene(seed)
    return (prompt, None) if scene is None else (scene.prompt, scene.truth)


def driver_truth(driver: str) -> dict[str, str]:
    """What an animation of a still shows; nothing is known about clothes and place. Raises KeyError."""
    return {"action": f"{{name}} is {DRIVER_ACTIONS[driver]}."}


@cache
def _bank() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("scenes.json").read_text(encoding="utf-8"))


@cache
def _pattern() -> re.Pattern:
    """Matches every prompt of the bank, with one group per slot."""
    groups = {"article": "(?:A|An)", "noun": "(?P<noun>[a-z]+)"}
    for slot in SLOTS:
        phrases = {phrase for setting in _bank()["settings"] for phrase in setting[slot]}
        groups[slot] = f"(?P<{slot}>{'|'.join(re.escape(p) for p in sorted(phrases, key=len, reverse=True))})"
    parts = re.split(r"\{(\w+)\}", _bank()["prompt"])  # text, slot, text, slot, ..., text
    return re.compile("".join(groups[part] if index % 2 else re.escape(part) for index, part in enumerate(parts)))
