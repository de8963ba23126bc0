"""Role QARefiner by rules: the generic words for the subject become the name, bystanders stay.

The base model knows nobody, so it writes "A man is waving. He wears a red shirt." The first sentence's subject is the
person asked about; a later "he", "the man" or "the person" is the same one as long as nobody else was brought in.
"""

from __future__ import annotations

import dataclasses
import re

from .records import QA, SubjectSpec

NOUNS = {
    "person": "any", "individual": "any", "subject": "any", "figure": "any", "character": "any", "child": "any",
    "man": "he", "boy": "he", "guy": "he", "gentleman": "he",
    "woman": "she", "girl": "she", "lady": "she",
}  # fmt: skip
PRONOUNS = {"he": "he", "she": "she", "they": "any"}
_NOUN = "|".join(NOUNS)
_DESCRIBED = r"(?:(?!other\b|another\b|second\b)[a-z-]+ ){0,2}?"
_GENERIC = re.compile(
    rf"(?:(?P<article>the|a|an|this|that) {_DESCRIBED}(?P<noun>{_NOUN})|(?P<pronoun>he|she|they))\b", re.I
)
_THERE = re.compile(rf"there is (?:a|an|one) {_DESCRIBED}(?P<noun>{_NOUN})(?: (?:who|that) is)? (?P<rest>\w+)", re.I)
_JOINED = re.compile(
    r"(?P<glue>(?:,|;)? (?:and|while|as|but|where|because)|;) (?P<word>he|she|they|the (?:" + _NOUN + r"))\b", re.I
)
_OTHERS = re.compile(
    r"\b(?:another|others?|someone else|somebody else|people|two|three|several|a second"
    rf"|(?:a|an) (?:[a-z-]+ )?(?:{_NOUN}|group|crowd))\b",
    re.I,
)


class RuleRefiner:
    """See the module. An answer without a subject that the rules recognise comes back with refined_by "none"."""

    id = "rules"

    def refine(self, qa: QA, subject: SubjectSpec) -> QA:
        answer = put_name(qa.answer, subject.name)
        if answer is None:
            return dataclasses.replace(qa, refined_by="none")
        return dataclasses.replace(qa, answer=answer, refined_by=self.id)


def put_name(text: str, name: str) -> str | None:
    """The text with the name for its subject; None when no subject was recognised in it.

    Text that holds the name already comes back as it is.
    """
    if name in text:
        return text
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    gender, alone, out = None, True, []
    for sentence in sentences:
        changed, found = _start(sentence, name, gender, alone)
        if found is not None:
            gender = found if gender in (None, "any") else gender
            if alone:
                changed = _join(changed, name, gender)
        if _OTHERS.search(changed):
            alone = False
        out.append(changed)
    return " ".join(out) if gender is not None else None


def _start(sentence: str, name: str, gender: str | None, alone: bool) -> tuple[str, str | None]:
    """Replaces a generic subject at the start. -> (sentence, gender word of what was replaced or None)."""
    there = _THERE.match(sentence)
    if there and gender is None:
        rest = there["rest"]
        verb = f"is {rest}" if rest.endswith("ing") or rest in ("in", "on", "at", "with", "near") else None
        if verb is not None:
            return f"{name} {verb}{sentence[there.end() :]}", NOUNS[there["noun"].lower()]
    match = _GENERIC.match(sentence)
    if match is None:
        return _possessive(sentence, name, gender, alone)
    kind = NOUNS[match["noun"].lower()] if match["noun"] else PRONOUNS[match["pronoun"].lower()]
    if gender is not None:
        if (match["article"] or "").lower() in ("a", "an"):
            return sentence, None  # an indefinite person in a later sentence is somebody new
        if "any" not in (kind, gender) and kind != gender:
            return sentence, None
        if not alone and (match["pronoun"] or kind != gender):
            return sentence, None  # could be the other one
    rest = sentence[match.end() :]
    if match["pronoun"] and match["pronoun"].lower() == "they":
        rest = re.sub(r"^ are\b", " is", re.sub(r"^ have\b", " has", rest))
    return name + rest, kind


def _possessive(sentence: str, name: str, gender: str | None, alone: bool) -> tuple[str, str | None]:
    match = re.match(r"(his|her|their) (?!is\b)", sentence, re.I)
    if match is None or not alone:
        return sentence, None
    kind = {"his": "he", "her": "she", "their": "any"}[match[1].lower()]
    if gender is not None and "any" not in (kind, gender) and kind != gender:
        return sentence, None
    return f"{name}'s {sentence[match.end() :]}", kind


def _join(sentence: str, name: str, gender: str) -> str:
    """The same subject after "and", "while", ...; stops at the first other person."""
    others = _OTHERS.search(sentence)
    limit = others.start() if others else len(sentence)

    def swap(match: re.Match) -> str:
        word = match["word"].lower()
        kind = PRONOUNS.get(word) or NOUNS[word.removeprefix("the ")]
        fits = "any" in (kind, gender) or kind == gender
        return f"{match['glue']} {name}" if fits and match.start() < limit else match[0]

    return _JOINED.sub(swap, sentence)
