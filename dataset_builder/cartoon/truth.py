"""What is true about a cartoon clip, in words: attributes, sentences, and questions with their answers.

Every answer is a function of the truth and of the group a question belongs to, never of its phrasing, so that exact
match can be scored. The person is always "the person"; names are learned elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .cast import IDENTITY_FEATURES, SCENE_FEATURES, Identity, Scene, choose

ATTRIBUTE_VALUES: dict[str, tuple[str, ...]] = {**IDENTITY_FEATURES, **SCENE_FEATURES}
ANY = "any"  # in a claim: whatever value but "none"

HAIR_PHRASES: dict[str, tuple[str, str]] = {
    "bald": ("a bald head", "a bald head with {color} sides"),
    "short": ("short hair", "short {color} hair"),
    "spiky": ("spiky hair", "spiky {color} hair"),
    "bob": ("a bob", "a {color} bob"),
    "long": ("long hair", "long {color} hair"),
    "bun": ("a bun", "a {color} bun"),
    "curly": ("curly hair", "curly {color} hair"),
    "mohawk": ("a mohawk", "a {color} mohawk"),
}  # style -> (alone, with the colour)
BEARD_PHRASES = {"none": "no beard", "moustache": "a moustache", "goatee": "a goatee", "full": "a full beard"}
PLACE_PHRASES = {
    "park": "in a park",
    "beach": "at the beach",
    "kitchen": "in a kitchen",
    "office": "in an office",
    "street": "on a street",
    "library": "in a library",
    "mountains": "in the mountains",
    "night city": "in a city at night",
}

APPEARANCE_QUESTIONS = (
    "What does the person look like?",
    "Describe the person's appearance.",
    "How would you describe the person?",
    "Describe the person in the video.",
    "What are the person's features?",
    "What is the appearance of the person in this video?",
    "Tell me what the person looks like.",
    "Give a description of the person.",
)
FEATURE_QUESTIONS: dict[str, tuple[str, ...]] = {
    "face_shape": ("What shape is the person's face?", "What kind of face does the person have?"),
    "skin": ("What is the person's skin like?", "What colour is the person's skin?"),
    "hair_style": ("What is the person's hairstyle?", "How does the person wear their hair?"),
    "hair_color": ("What colour is the person's hair?", "Which hair colour does the person have?"),
    "eye_color": ("What colour are the person's eyes?", "Which eye colour does the person have?"),
    "brows": ("What are the person's brows like?", "What kind of brows does the person have?"),
    "nose": ("What is the person's nose like?", "What kind of nose does the person have?"),
    "ears": ("What are the person's ears like?", "What kind of ears does the person have?"),
    "glasses": ("What glasses does the person wear?", "Which glasses is the person wearing?"),
    "beard": ("What beard does the person have?", "What is on the person's chin or lip?"),
}
CLOTHING_QUESTIONS = (
    "What is the person wearing?",
    "What clothes does the person have on?",
    "How is the person dressed?",
    "Describe the person's clothes.",
    "What does the person wear in this video?",
    "Which outfit is the person in?",
)
GARMENT_QUESTIONS = ("What kind of clothing is the person wearing?", "Which piece of clothing does the person wear?")
GARMENT_COLOR_QUESTIONS = ("What colour are the person's clothes?", "Which colour is the person wearing?")
ACTION_QUESTIONS = (
    "What is the person doing?",
    "What does the person do in this video?",
    "Which action is the person performing?",
    "Describe what the person is doing.",
    "What is happening in the video?",
    "How is the person moving?",
    "What activity can be seen?",
)
PLACE_QUESTIONS = (
    "Where is the person?",
    "In what place is the person?",
    "Where does the video take place?",
    "What is the location of the person?",
    "What can be seen in the background?",
    "Describe where the person is.",
    "Which place is this?",
)
IDENTITY_CLAIMS = (
    "Is this a person with {what}?",
    "Does the person have {what}?",
    "Is the person someone with {what}?",
    "Does the video show a person with {what}?",
)
PRESENCE_CLAIMS = (
    "Is there someone with {what} in the video?",
    "Is there a person with {what} in this video?",
    "Can you see someone with {what}?",
    "Does someone with {what} appear in the video?",
)
SCENE_CLAIMS: dict[str, tuple[str, ...]] = {
    "action": ("Is the person {what}?", "Is someone {what} in the video?"),
    "place": ("Is the person {what}?", "Does this video take place {what}?"),
    "garment": ("Is the person wearing {what}?", "Does the person wear {what}?"),
    "clothing": ("Is the person wearing {what}?", "Does the person wear {what}?"),
    "garment_color": ("Are the person's clothes {what}?", "Is the person dressed in {what}?"),
}
ANY_CLAIMS: dict[str, tuple[str, ...]] = {
    "glasses": ("Does the person wear glasses?", "Is the person wearing glasses?"),
    "beard": ("Does the person have a beard or a moustache?", "Is there hair on the person's chin or lip?"),
}
TRUTH_ANSWERS = ("Yes, that is right.", "No, that is wrong.")
PRESENCE_ANSWERS = ("Yes, there is.", "No, there is not.")

IDENTITY_CLAIM_SHARE = 0.45  # of all questions
OPEN_KINDS = ("appearance", "clothing", "action", "place", "yes_no")
OPEN_KIND_SHARES = (0.32, 0.17, 0.2, 0.14, 0.17)  # of the rest
CLAIM_SIZE_SHARES = (0.46, 0.18, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03)  # claims about 1, 2, ... 8 features


@dataclass(frozen=True)
class QAItem:
    """`claim` is what a yes_no question asserts (attribute -> value); empty for open questions."""

    kind: str
    question: str
    answer: str
    claim: Mapping[str, str] = field(default_factory=dict)


def attributes(identity: Identity, scene: Scene) -> dict[str, str]:
    """All that is true about the clip, by the names of `ATTRIBUTE_VALUES`."""
    return {**identity.to_dict(), **{name: getattr(scene, name) for name in SCENE_FEATURES}}


def claim_holds(truth: Mapping[str, str], claim: Mapping[str, str]) -> bool:
    """Whether every attribute of `claim` has the claimed value (`ANY`: a value other than "none")."""
    return all(truth[name] != "none" if value == ANY else truth[name] == value for name, value in claim.items())


# Sentences


def description(identity: Identity) -> str:
    """One sentence in a fixed order that states what is there and leaves out missing glasses and beard."""
    worn = {name: value for name, value in identity.to_dict().items() if value != "none"}
    return f"The person has {list_in_words(feature_phrases(worn))}."


def clothing(scene: Scene) -> str:
    return f"The person is wearing {_garment_phrase(scene.garment, scene.garment_color)}."


def activity(scene: Scene) -> str:
    return f"The person is {scene.action}."


def location(scene: Scene) -> str:
    return f"The person is {PLACE_PHRASES[scene.place]}."


def feature_phrases(features: Mapping[str, str]) -> list[str]:
    """Noun phrases for identity features in the fixed order; hair style and colour share one."""
    phrases = []
    for name in IDENTITY_FEATURES:
        if name == "hair_color" and "hair_style" in features or name not in features:
            continue
        phrases.append(_hair_phrase(features) if name == "hair_style" else feature_phrase(name, features[name]))
    return phrases


def feature_phrase(name: str, value: str) -> str:
    """One identity feature as a noun phrase: "a round face", "red hair", "no glasses"."""
    if name == "face_shape":
        return f"{_article(value)} {value} face"
    if name == "hair_style":
        return HAIR_PHRASES[value][0]
    if name == "nose":
        return f"{_article(value)} {value} nose"
    if name == "beard":
        return BEARD_PHRASES[value]
    if name == "glasses":
        return "no glasses" if value == "none" else f"{value} glasses"
    nouns = {"skin": "skin", "hair_color": "hair", "eye_color": "eyes", "brows": "brows", "ears": "ears"}
    return f"{value} {nouns[name]}"


def list_in_words(phrases: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c" """
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _hair_phrase(features: Mapping[str, str]) -> str:
    alone, colored = HAIR_PHRASES[features["hair_style"]]
    return colored.format(color=features["hair_color"]) if "hair_color" in features else alone


def _garment_phrase(garment: str, color: str | None = None) -> str:
    phrase = garment if color is None else f"{color} {garment}"
    return f"{_article(phrase)} {phrase}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# Questions


def general_questions(identity: Identity, scene: Scene, rng: np.random.Generator, n: int) -> list[QAItem]:
    """`n` random questions about the clip, about 40 % of them claims about who the person is."""
    return [_any_question(identity, scene, rng) for _ in range(n)]


def _any_question(identity: Identity, scene: Scene, rng: np.random.Generator) -> QAItem:
    if rng.random() < IDENTITY_CLAIM_SHARE:
        return identity_question(identity, rng)
    kind = OPEN_KINDS[int(rng.choice(len(OPEN_KINDS), p=OPEN_KIND_SHARES))]
    if kind == "yes_no":
        return scene_claim_question(identity, scene, rng)
    return open_question(kind, identity, scene, rng)


def open_question(kind: str, identity: Identity, scene: Scene, rng: np.random.Generator) -> QAItem:
    """A question of `kind` ("appearance", "clothing", "action", "place") whose answer is not yes or no."""
    groups = _open_groups(identity, scene)[kind]
    is_whole = len(groups) == 1 or rng.random() < 0.5
    phrasings, answer = groups[0] if is_whole else choose(rng, groups[1:])
    return QAItem(kind, choose(rng, phrasings), answer)


def _open_groups(identity: Identity, scene: Scene) -> dict[str, list[tuple[Sequence[str], str]]]:
    """kind -> [(phrasings, the answer they all have)], the whole sentence first."""
    features = identity.to_dict()
    single = [(FEATURE_QUESTIONS[name], _short_answer(name, value)) for name, value in features.items()]
    return {
        "appearance": [(APPEARANCE_QUESTIONS, description(identity)), *single],
        "clothing": [
            (CLOTHING_QUESTIONS, clothing(scene)),
            (GARMENT_QUESTIONS, _sentence(_garment_phrase(scene.garment))),
            (GARMENT_COLOR_QUESTIONS, _sentence(scene.garment_color)),
        ],
        "action": [(ACTION_QUESTIONS, activity(scene))],
        "place": [(PLACE_QUESTIONS, location(scene))],
    }


def _short_answer(name: str, value: str) -> str:
    return _sentence(value if name in ("hair_color", "eye_color") else feature_phrase(name, value))


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."


def identity_question(identity: Identity, rng: np.random.Generator) -> QAItem:
    """Claims 1 to 8 features of the person, more often few than many; true half of the time.

    Half of the false claims change exactly one or two of the listed features, the others describe a random person.
    """
    count = 1 + int(rng.choice(len(CLAIM_SIZE_SHARES), p=CLAIM_SIZE_SHARES))
    names = [list(IDENTITY_FEATURES)[index] for index in sorted(rng.permutation(len(IDENTITY_FEATURES))[:count])]
    claim = {name: getattr(identity, name) for name in names}
    if rng.random() < 0.5:
        claim = _near_miss(identity, claim, rng) if rng.random() < 0.5 else _random_miss(identity, names, rng)
    return claim_question(identity.to_dict(), claim, rng)


def claim_question(truth: Mapping[str, str], claim: Mapping[str, str], rng: np.random.Generator) -> QAItem:
    """A yes_no question whether the person has all the identity features of `claim`."""
    what = list_in_words(feature_phrases(claim))
    if rng.random() < 0.5:
        return _yes_no(choose(rng, IDENTITY_CLAIMS).format(what=what), truth, claim)
    return _yes_no(choose(rng, PRESENCE_CLAIMS).format(what=what), truth, claim, PRESENCE_ANSWERS)


def _near_miss(identity: Identity, claim: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    changes = min(len(claim), int(rng.integers(1, 3)))
    changed = [list(claim)[index] for index in rng.permutation(len(claim))[:changes]]
    return {**claim, **{name: identity.other_value(name, rng) for name in changed}}


def _random_miss(identity: Identity, names: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    claim = {name: choose(rng, IDENTITY_FEATURES[name]) for name in names}
    if claim_holds(identity.to_dict(), claim):
        return _near_miss(identity, claim, rng)
    return claim


def scene_claim_question(identity: Identity, scene: Scene, rng: np.random.Generator) -> QAItem:
    """A yes_no question about action, place, clothes, or whether there are glasses or a beard; balanced."""
    truth = attributes(identity, scene)
    is_true = bool(rng.random() < 0.5)
    askable = [name for name in ANY_CLAIMS if (truth[name] != "none") == is_true]
    name = choose(rng, [*SCENE_CLAIMS, "action", "place", *askable])
    if name in ANY_CLAIMS:
        return _yes_no(choose(rng, ANY_CLAIMS[name]), truth, {name: ANY})
    claim = {key: truth[key] for key in (("garment", "garment_color") if name == "clothing" else (name,))}
    if not is_true:
        changed = choose(rng, list(claim))
        claim[changed] = choose(rng, [value for value in SCENE_FEATURES[changed] if value != truth[changed]])
    return _yes_no(choose(rng, SCENE_CLAIMS[name]).format(what=_claimed_scene(name, claim)), truth, claim)


def _claimed_scene(name: str, claim: Mapping[str, str]) -> str:
    if name in ("garment", "clothing"):
        return _garment_phrase(claim["garment"], claim.get("garment_color"))
    return PLACE_PHRASES[claim[name]] if name == "place" else claim[name]


def _yes_no(
    question: str,
    truth: Mapping[str, str],
    claim: Mapping[str, str],
    answers: tuple[str, str] = TRUTH_ANSWERS,
) -> QAItem:
    return QAItem("yes_no", question, answers[0] if claim_holds(truth, claim) else answers[1], dict(claim))


# Text for a tokenizer


def vocabulary_corpus(clips: int = 400, questions_per_clip: int = 40, seed: int = 0) -> Iterator[str]:
    """Lines with every word this world uses: all phrasings and values once, then random questions with answers."""
    yield from _all_phrasings()
    yield from _all_values()
    rng = np.random.default_rng(seed)
    for _ in range(clips):
        identity, scene = Identity.random(rng), Scene.random(rng)
        for item in general_questions(identity, scene, rng, questions_per_clip):
            yield f"{item.question} {item.answer}"


def _all_phrasings() -> Iterator[str]:
    plain = (APPEARANCE_QUESTIONS, CLOTHING_QUESTIONS, GARMENT_QUESTIONS, GARMENT_COLOR_QUESTIONS, ACTION_QUESTIONS)
    yield from (text for group in (*plain, PLACE_QUESTIONS, *FEATURE_QUESTIONS.values()) for text in group)
    yield from (text for group in ANY_CLAIMS.values() for text in group)
    templates = (IDENTITY_CLAIMS, PRESENCE_CLAIMS, *SCENE_CLAIMS.values())
    yield from (text.format(what="the same") for group in templates for text in group)
    yield from (*TRUTH_ANSWERS, *PRESENCE_ANSWERS)


def _all_values() -> Iterator[str]:
    for name, values in IDENTITY_FEATURES.items():
        yield from (_short_answer(name, value) for value in values)
        yield f"The person has {list_in_words([feature_phrase(name, value) for value in values])}."
    yield from (colored.format(color="red") for _, colored in HAIR_PHRASES.values())
    for color in SCENE_FEATURES["garment_color"]:
        yield from (_sentence(_garment_phrase(garment, color)) for garment in SCENE_FEATURES["garment"])
        yield _sentence(color)
    yield from (f"The person is {what}." for what in (*SCENE_FEATURES["action"], *PLACE_PHRASES.values()))
