"""What the scores add up to, in words: a verdict on the adapter, and everything that a reader must know beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

TITLES = {
    "constant_yes": "always yes",
    "constant_no": "always no",
    "text_only": "no picture (text only)",
    "no_adapter": "base without the adapter",
    "wrong_adapter": "another subject's adapter",
    "reference_in_prompt": "reference clip in the prompt",
    "reference_as_tokens": "reference clip as subject tokens",
    "embedding_gate": "face comparison alone",
    "name_swapped": "asked about another name",
}
# Cheaper ways to know a person: an adapter that does not beat them was not worth its training.
RIVALS = ("reference_in_prompt", "reference_as_tokens", "embedding_gate")
NEEDED = ("no_adapter", "wrong_adapter", "reference_in_prompt", "embedding_gate")  # for a verdict without reserve
NOT_A_BAR = ("name_swapped",)  # reads other questions: it is judged by its yes-rate
SIGNIFICANT = 0.05
CHANCE_BAND = 0.1  # how far from chance another subject's adapter may score
ONE_SIDED = 0.6  # share of one side from which on plain accuracy misleads
OTHER_NAME_YES = 0.1  # share of yes to another name that is not worth a word


class Verdict(NamedTuple):
    """`passed`: better than every control, by a paired test on the same questions."""

    passed: bool
    text: str


def verdict(scores: dict[str, Any]) -> Verdict:
    """Whether the adapter was worth its training, by balanced accuracy on existence questions.

    It must beat every control in a paired test; as it must beat all of them, no correction for many tests is due.
    """
    subject = scores["details"]["subject"]
    score = scores["existence"]["balanced_accuracy"]
    if scores["details"].get("answers_of") == "gold":
        return Verdict(False, "No verdict: the gold answers were scored, not those of a model.")
    if score is None:
        return Verdict(False, f"No verdict: the test clips are all with, or all without {subject}.")
    paired = {name: test for name, test in scores["paired"].items() if test and name not in NOT_A_BAR}
    reached = f"balanced accuracy {score:.2f}"
    lost = [name for name, test in paired.items() if test["difference"] <= 0]
    unsure = [name for name, test in paired.items() if test["difference"] > 0 and test["p"] >= SIGNIFICANT]
    missing = [name for name in NEEDED if not paired.get(name)]
    rivals = [name for name in unsure if name in RIVALS]
    if lost or rivals:
        return Verdict(
            False, f"Not worth its training: {reached}, and it does not beat {_said(lost or rivals, scores)}."
        )
    if unsure:
        text = f"{_said(unsure, scores)}; use more test clips."
        return Verdict(False, f"Ahead of the controls, not for certain: {reached}, against {text}")
    best = max(paired, key=lambda name: scores["controls"][name]["balanced_accuracy"])
    against = f"the best control is {_said([best], scores)}"
    if missing:
        names = ", ".join(TITLES[name] for name in missing)
        return Verdict(False, f"Ahead of the controls that ran: {reached}, {against}; not run: {names}.")
    return Verdict(True, f"The adapter beats every control: {reached}, {against}.")


def _said(names: Sequence[str], scores: dict[str, Any]) -> str:
    """ "face comparison alone (0.70; +0.05 [-0.02, 0.11], p = 0.12)", and others after it."""
    parts = []
    for name in names:
        test, own = scores["paired"][name], scores["controls"][name]["balanced_accuracy"]
        span = "" if test["interval"] is None else " [{:+.2f}, {:+.2f}]".format(*test["interval"])
        parts.append(f"{TITLES[name]} ({own:.2f}; {test['difference']:+.2f}{span}, {p_value(test['p'])})")
    return " nor ".join(parts)


def p_value(p: float) -> str:
    """ "p = 0.03", or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def find(scores: dict[str, Any]) -> list[str]:
    """Sentences about what may mislead in these scores; none for a sound evaluation."""
    made, controls = scores["details"]["composition"], scores["controls"]
    found = []
    asked = made["existence_present"] + made["existence_absent"]
    for name, count, side in (
        ("constant_yes", made["existence_present"], "with"),
        ("constant_no", made["existence_absent"], "without"),
    ):
        if count / asked > ONE_SIDED:
            word = "Yes" if name == "constant_yes" else "No"
            found.append(
                f'A constant "{word}." reaches accuracy {controls[name]["accuracy"]:.3f}, as {count} of {asked} '
                f"existence questions are about clips {side} the subject: read balanced accuracy, not accuracy."
            )
    said = {side: count for side, count in scores["details"]["said"].items() if count}
    if len(said) == 1 and asked > 1:
        found.append(f'The evaluated answers are constant: every one of the {asked} says "{next(iter(said))}".')
    wrong = controls["wrong_adapter"]
    if wrong and wrong["balanced_accuracy"] is not None and abs(wrong["balanced_accuracy"] - 0.5) > CHANCE_BAND:
        found.append(
            f"Another subject's adapter scores {wrong['balanced_accuracy']:.2f}, not within {CHANCE_BAND} of chance: "
            f"what was learned is not only this subject."
        )
    swapped = controls["name_swapped"]
    if swapped and (swapped["says_yes"] or 0) > OTHER_NAME_YES:
        on_subject = swapped["says_yes_on_subject"]
        where = "" if on_subject is None else f", {on_subject:.0%} of those of the subject"
        found.append(
            f"Asked about another name, it still says yes on {swapped['says_yes']:.0%} of the clips{where}: "
            f"the answer does not depend on who is asked about."
        )
    if scores["details"]["unknown"] > 0.1:
        found.append(f"{scores['details']['unknown']:.0%} of the answers take no side and count as wrong.")
    return found
