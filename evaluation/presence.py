"""Reads from an answer whether it says that the subject is in the video.

Answers are free text, so this is a small grammar: a leading yes or no, negation of the clause that speaks of the
subject, and phrases of doubt. An answer that contradicts itself ("Yes, <Nz> is not here.") says nothing. The tests
hold hundreds of phrasings that were read by hand.
"""

from __future__ import annotations

import re

PRESENT, ABSENT, UNKNOWN = "present", "absent", "unknown"

_ME = "@"  # stands for the subject's name
_SIGN = "sign|trace|evidence|hint|indication"
_JUDGE = "tell|know|determine|confirm|verify|judge"
_ANYBODY = "person|people|man|woman|subject|one"
_OPENING = re.compile(
    r"\W*(?:(?:unfortunately|sorry|well|actually|honestly|oh|i am afraid|i'm afraid"
    r"|(?:the |my )?answer(?: is\b|(?=\W))|a(?=:)"
    r"|i (?:would |think |believe |guess )*(?:say )?(?=(?:yes|no|not)\W*(?:$|,)))[\s,.:*]*)+"
)
_YES = re.compile(
    r"\W*(?:yes|yeah|yep|yup|sure|certainly|definitely|indeed|absolutely|correct|true)\b(?! not\b| (?:and|or) no\b)"
    r"[\s,.!:;-]*"
)
_NO = re.compile(
    rf"\W*(?:no|nope|nah|false|incorrect|negative)\b(?! (?:one\b|{_ME}|(?:\w+ ){{0,2}}(?:{_SIGN})))[\s,.!:;-]*"
    r"|\W*(?:definitely |certainly |absolutely |of course )?not(?: at all)?\W*$"
)
_CERTAIN = re.compile(r"\b(?:there is |with |has )?(?:no|(?:without|beyond)(?: a| any)?) (?:doubt|question)\b")
_ONLY = re.compile(r"\b(?:nobody but|no one but|none other than|no one other than|not only|not just)\b")
_REFUSED = re.compile(  # of models that name nobody
    r"\bnot (?:\w+ )?(?:help|assist)\b"
    r"|\bnot (?:\w+ )?(?:identify|recogni[sz]e) (?:\w+ )?(?:people|persons|individuals|faces)"
)
_DOUBT = re.compile(
    rf"\b(?:not (?:able to |possible to |\w+ )?|unable to )(?:(?:{_JUDGE})\b|say\b(?! that))"
    r"|\bnot (?:\w+ )?(?:sure|certain|clear)\b"
    r"|\b(?:unsure|uncertain|unclear|unknown|undetermined|maybe|perhaps|might|possibly|probably)\b"
    r"|\b(?:hard|difficult|impossible) to (?:say|tell|see|know|judge)\b|\bno idea\b|\bmay (?:or|be)\b|\bcould be\b"
)
_DESCRIBED = re.compile(  # negations that say how somebody looks or acts, not whether they are there
    r"\bnot (?!(?:be|appear|show|featur|exist|tak)ing\b)\w+ing\b"
    rf"|\b(?:has|have|having|with|wears?|wearing) no (?!{_ME}|{_SIGN})\w+|\bwithout (?!{_ME})\w+"
    rf"|\b(?:the|his|her|their|{_ME}'s) (?!{_ANYBODY})\w+ (?:is|are) not (?:\w+ )?(?:visible|seen|shown|clear)\b"
    rf"|\bnot {_ME}'s \w+"
    r"|\b(?:with|to|by|at|beside|near|behind|for|from|and) (?:(?:someone|somebody) else|another \w+)"
)
_DENIED = re.compile(
    rf"\bnot\b|\bnever\b|\bneither\b|\bnor\b|\bno (?:\w+ ){{0,2}}(?:{_SIGN}|{_ME})|\bno {_ME}"
    r"|\b(?:nobody|none|no one)\b(?! else)"
    r"|\b(?:absent|missing|elsewhere|nowhere|lacks?|lacking|unable|fail(?:s|ed)? to)\b"
    rf"|\b(?:instead of|other than|without) {_ME}"
)
_OTHER = re.compile(
    rf"\b(?:someone|somebody) else\b|\b(?:another|a different|the wrong) (?:{_ANYBODY})\b|\bnot (?:think|believe) so\b"
)
_AGREED = re.compile(r"\bi (?:think|believe|guess) so\b")
_DOUBLE = re.compile(r"\bnot (?:alone|absent|missing|elsewhere|someone else|somebody else|another person)\b")
_ACQUAINTED = re.compile(rf"\b(?:know|knows|met|remember|who) {_ME}")
_REFERS = re.compile(rf"{_ME}|\b(?:he|she|they|him|her|them)\b")
_UNSEEN = re.compile(
    rf"\bnot (?:\w+ )?(?:see|find|spot|detect|identify|recogni[sz]e|notice|show|contain|include|appear)\b.*{_ME}"
)
_SEEN = re.compile(
    r"\b(?:see|seen|find|found|spot|spotted|detect\w*|identif\w*|recogni[sz]e\w*|notice\w*|show\w*|appear\w*|visible"
    r"|present|here|there|in (?:the|this)|on screen|featured?|contains?|includes?|exists?|captured)\b"
)
_CLAUSES = re.compile(
    r"[.;!?]+(?:\s|$)|, (?:and|while|so|but) |(?:,| and| but)+ (?=not (?:a |the )?[\w@]+(?:[.;!?]|$))"
)


def parse_presence(answer: str, name: str) -> str:
    """`"present"`, `"absent"`, or `"unknown"` when the answer takes no side or both.

    Args:
        answer: free text.
        name: the subject's name as it stands in answers, such as `<Nz>`; without the brackets it counts, too.
    """
    text = _without_opening(_normalise(answer, name))
    side = None
    for pattern, meaning in ((_NO, ABSENT), (_YES, PRESENT)):
        match = pattern.match(text)
        if match:
            side, text = meaning, text[match.end() :]
            break
    said = _first_statement(text)
    if side is None:
        return said or UNKNOWN
    return side if said in (None, side) else UNKNOWN


def rename(text: str, name: str, other: str) -> str:
    """The text with `other` for the name, with its brackets (`<Nz>`) or as a word of its own (`Nz`)."""
    text = text.replace(name, other)
    return re.sub(rf"(?<![\w<]){re.escape(name.strip('<>'))}(?![\w>])", lambda _: other, text)


def _normalise(answer: str, name: str) -> str:
    """Lower case, the name as `@`, negations as separate words, phrases of certainty gone."""
    text = rename(" ".join(answer.replace("\u2019", "'").split()), name, _ME).lower()
    text = re.sub(r"n't\b", " not", text.replace("cannot", "can not").replace("can't", "can not"))
    text = text.replace("won not", "will not").replace("ca not", "can not")
    return _ONLY.sub("only", _CERTAIN.sub("certainly", text)).strip()


def _without_opening(text: str) -> str:
    match = _OPENING.match(text)
    return text[match.end() :] if match else text


def _first_statement(text: str) -> str | None:
    """What the first clause that speaks of the subject says; `None` when no clause does."""
    for clause in _CLAUSES.split(text):
        clause = clause.strip()
        about = _REFERS.search(clause)
        if not clause or _ACQUAINTED.search(clause):
            continue
        clause = _DOUBLE.sub("here", _DESCRIBED.sub("", clause))
        if _REFUSED.search(clause):
            return UNKNOWN
        if _UNSEEN.search(clause):
            return ABSENT
        if _DOUBT.search(clause):
            return UNKNOWN
        if _OTHER.search(clause) or (_DENIED.search(clause) and (about or _SEEN.search(clause))):
            return ABSENT
        if _ME in clause or (about and _SEEN.search(clause)) or _AGREED.search(clause):
            return PRESENT
    return None
