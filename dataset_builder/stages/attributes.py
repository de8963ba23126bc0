"""attributes: the word that the text uses for a subject. What the user says comes first; a model is asked only where a
recipe names one, and may abstain. Minors are refused, whoever says so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..consent import refuse_minor
from ..engine import Reject, Stage, Task
from ..people import Footage, PersonFiles
from .common import Build

NOUNS = {"male": "man", "female": "woman"}


def attributes(build: Build, references: Sequence[Footage]) -> None:
    """Sets the noun of `build.subjects` where the user left it at "person"."""
    classifier = build.backends.attributes
    if classifier is None:
        build.engine.skip("attributes", "as given by the user")
        return
    stage = Stage("attributes", 1, classifier.id, ".json")
    tasks = [Task(stage, f.label, make_attributes, {"files": f.files}, {}, f.hashes) for f in references]
    for footage, found in zip(references, build.engine.map(tasks), strict=True):
        if isinstance(found, Reject):
            continue
        spec = build.spec(footage.subject)
        for word in (found.meta["gender"], found.meta["age"]):
            refuse_minor(word)
        noun = NOUNS.get(found.meta["gender"], "person") if spec.noun == "person" else spec.noun
        build.subjects[build.subjects.index(spec)] = dataclasses.replace(spec, noun=noun)


def make_attributes(target: Path, backends: Any, files: PersonFiles) -> dict:
    found = backends.attributes.classify(files.load())
    facts = {"gender": found.gender, "age": found.age, "source": found.source}
    target.write_text(json.dumps(facts), encoding="utf-8")
    return facts
