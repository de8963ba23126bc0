"""Behaviour of scores, intervals and the reading of answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvchat.evaluation import metrics, parse_presence
from pvchat.evaluation.bootstrap import clustered_intervals
from pvchat.evaluation.controls import best_threshold
from pvchat.evaluation.metrics import ExistenceAnswers, existence_scores

AUTHORS_JSON = Path(__file__).parents[2] / "shared" / "data" / "authors_train_all_video.json"
BANK = Path(__file__).parents[1] / "dataset_builder" / "questions" / "bank.json"
ORIGINS = ("hard_negative", "random_negative", "user")

PHRASINGS = {
    "present": (
        "Yes.", "yes", "Yes, <Nz> is here.", "Yes! That's <Nz>, without a hat.", "<Nz> is clearly visible.",
        "I would say that is <Nz>.", "The person is <Nz>.", "It's Nz!", "It is <Nz>, not Lena.", "<Nz> does appear.",
        "No doubt, <Nz> is here.", "None other than <Nz>.", "<Nz> is not missing.", "I see her.", "Yes, I do.",
        "<Nz> is here, and no one else is.", "<Nz> is here. I can not see the shoes.",
        "Yes, <Nz> is here but is not wearing a hat.", "<Nz> has no beard and is waving.",
    ),
    "absent": (
        "No.", "no", "NO, IT IS NOT <NZ>", "No, <Nz> is not here.", "No, I don't.", "I do not see <Nz>.",
        "I don't see Nz here", "I can't find <Nz>.", "I am not able to see <Nz>.", "<Nz> is missing.", "Not <Nz>.",
        "<Nz> isn\u2019t there", "There is no sign of <Nz>.", "No sign of <Nz>.", "It is Lena, not <Nz>.",
        "<Nz>, who wears red, is not here.", "The one on screen is not <Nz>.", "Nobody in this clip is <Nz>.",
        "That is someone else.", "This is another person.", "She is not in the video.", "Unfortunately, no.",
        "Definitely not.", "Certainly not <Nz>.", "Not at all.", "I know <Nz>, but I do not see <Nz>.",
        "I believe that <Nz> is absent.", "I would not say that <Nz> is here.",
    ),
    "unknown": (
        "", "   ", "A man is walking.", "the the the", "I cannot tell.", "I do not know.", "I think so.",
        "It is impossible to say.", "Maybe <Nz> is here.", "It could be <Nz>.", "Nzambi is here.",
        "I'm not sure whether <Nz> is here.", "Yes, <Nz> is not here.", "No, <Nz> is in this video.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("meaning", "answer"), [(m, a) for m, answers in PHRASINGS.items() for a in answers])
def test_presence_is_read_from_many_phrasings(meaning, answer):
    assert parse_presence(answer, "<Nz>") == meaning


@pytest.mark.parametrize("name", ["<Nz>", "<Ada B.>", "<sks>"])
def test_presence_of_every_answer_in_the_question_bank_is_read(name):
    bank = json.loads(BANK.read_text(encoding="utf-8"))
    wrong = [
        (answer, name)
        for category in bank.values()
        for kind, meaning in (("yes", "present"), ("no", "absent"), ("refusals", "absent"))
        for answer in category.get(kind, ())
        if parse_presence(answer.replace("{name}", name), name) != meaning
    ]
    assert wrong == []


@pytest.mark.skipif(not AUTHORS_JSON.exists(), reason="the authors' file is not here")
def test_presence_agrees_with_every_answer_of_the_authors():
    videos = json.loads(AUTHORS_JSON.read_text(encoding="utf-8"))["data"]
    pairs = [(q["answer"], v["is_positive"]) for v in videos for q in v["qa_pairs"] if q["is_special"]]
    assert len(pairs) == 9840
    wrong = [a for a, present in pairs if parse_presence(a, "<sks>") != ("present" if present else "absent")]
    assert wrong == []


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_presence_of_any_text_is_one_of_three(text):
    assert parse_presence(text, "<Nz>") in PHRASINGS


# -- existence --------------------------------------------------------------------------------------------------------


def answers(*rows: tuple[bool, int, str, float]) -> ExistenceAnswers:
    present, said, origin, margin = zip(*rows, strict=True)
    return ExistenceAnswers(np.array(present), np.array(said), np.array(origin), np.array(margin, float))


@st.composite
def existence_answers(draw) -> ExistenceAnswers:
    """Both sides occur; margins repeat, so that there are ties."""
    row = st.tuples(st.booleans(), st.sampled_from([-1, 0, 1]), st.sampled_from(ORIGINS), st.integers(-3, 3))
    rows = draw(st.lists(row, min_size=2, max_size=30))
    rows[0], rows[1] = (True, *rows[0][1:]), (False, *rows[1][1:])
    return answers(*rows)


def close(first: dict, second: dict, leave_out: tuple[str, ...] = ()) -> bool:
    return all(first[k] == pytest.approx(second[k], abs=1e-9) for k in first if k not in leave_out)


def test_scores_of_a_worked_example():
    found = existence_scores(
        answers(
            (True, 1, "user", 2.0),
            (True, 1, "user", 1.0),
            (True, 0, "user", -1.0),
            (True, -1, "user", 0.0),
            (False, 1, "hard_negative", 1.0),
            (False, 0, "hard_negative", -2.0),
            (False, 0, "random_negative", -3.0),
        )
    )
    assert found["accuracy"] == pytest.approx(4 / 7)
    assert found["balanced_accuracy"] == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert found["false_accept_lookalike"] == 0.5
    assert found["false_accept_stranger"] == 0.0
    assert found["auroc"] == pytest.approx((3 + 2.5 + 2 + 2) / 12)
    assert found["n"] == 7


@given(existence_answers(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_scores_do_not_depend_on_the_order(found, random):
    order = list(range(len(found.present)))
    random.shuffle(order)
    assert close(existence_scores(found), existence_scores(found.take(np.array(order))))


@given(existence_answers(), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_scores_stay_when_every_question_is_repeated(found, times):
    repeated = found.take(np.tile(np.arange(len(found.present)), times))
    assert close(existence_scores(found), existence_scores(repeated), leave_out=("n",))


@given(existence_answers(), st.sampled_from([0, 1]), st.floats(-5, 5))
@settings(max_examples=60, deadline=None)
def test_a_constant_answer_has_balanced_accuracy_and_auroc_one_half(found, said, margin):
    count = len(found.present)
    constant = found._replace(said=np.full(count, said), margin=np.full(count, margin))
    scores = existence_scores(constant)
    assert scores["balanced_accuracy"] == 0.5
    assert scores["auroc"] == pytest.approx(0.5)


@given(existence_answers())
@settings(max_examples=60, deadline=None)
def test_scores_lie_between_0_and_1(found):
    assert all(value is None or 0 <= value <= 1 for key, value in existence_scores(found).items() if key != "n")


@given(existence_answers())
@settings(max_examples=60, deadline=None)
def test_auroc_counts_pairs_and_half_of_the_ties(found):
    positive, negative = found.margin[found.present], found.margin[~found.present]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    assert metrics.auroc(found.present, found.margin) == pytest.approx(wins.mean())
    false, true = metrics.roc_curve(found.present, found.margin)
    assert np.trapezoid(true, false) == pytest.approx(wins.mean())


def test_what_is_not_defined_is_none_and_never_zero():
    one_side = existence_scores(answers((True, 1, "user", 1.0), (True, 0, "user", np.nan)))
    assert one_side == {
        "accuracy": 0.5,
        "balanced_accuracy": None,
        "false_accept_lookalike": None,
        "false_accept_stranger": None,
        "auroc": None,
        "ece": None,
        "n": 2,
    }


def test_an_answer_that_takes_no_side_is_wrong_on_both_sides():
    found = answers((True, -1, "user", 0.0), (False, -1, "hard_negative", 0.0))
    assert existence_scores(found)["accuracy"] == 0.0
    assert existence_scores(found)["false_accept_lookalike"] == 0.0


def test_calibration_error_is_the_gap_between_stated_and_true():
    present = np.array([True] * 3 + [False])
    certain = np.full(4, 60.0)
    assert metrics.expected_calibration_error(present, certain) == pytest.approx(0.25)
    assert metrics.expected_calibration_error(present, np.full(4, np.log(3.0))) == pytest.approx(0.0)
    assert metrics.expected_calibration_error(present, np.array([60.0, 60.0, 60.0, -60.0])) == pytest.approx(0.0)


# -- text -------------------------------------------------------------------------------------------------------------

sentences = st.lists(
    st.lists(st.sampled_from("a person waves in the red park".split()), min_size=1, max_size=8).map(" ".join),
    min_size=1,
    max_size=6,
)


@given(sentences)
@settings(max_examples=30, deadline=None)
def test_bleu_of_the_truth_itself_is_1(texts):
    assert metrics.bleu(texts, texts) == pytest.approx(1.0)


@given(sentences, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_bleu_of_summed_counts_is_the_corpus_score_in_any_order(texts, random):
    from sacrebleu.metrics import BLEU

    golds = texts[::-1]
    for order in (1, 4):
        expected = BLEU(max_ngram_order=order, effective_order=True).corpus_score(texts, [golds]).score / 100
        assert metrics.bleu(texts, golds, order) == pytest.approx(expected)
    pairs = list(zip(texts, golds, strict=True))
    random.shuffle(pairs)
    assert metrics.bleu(*zip(*pairs, strict=True)) == pytest.approx(metrics.bleu(texts, golds))


def test_bleu_of_empty_answers_is_0_and_of_no_answers_none():
    assert metrics.bleu(["", ""], ["a cat", "a dog"]) == 0.0
    assert metrics.bleu([], []) is None


def test_exactness_ignores_case_punctuation_and_spaces_only():
    truth = "<Nz> wears a red shirt."
    assert metrics.exact_match(["<nz>  wears a red shirt"], [truth]) == 1.0
    assert metrics.exact_match(["<Nz> wears a blue shirt."], [truth]) == 0.0
    assert metrics.exact_match(["It\u2019s red"], ["it's red."]) == 1.0


# -- intervals --------------------------------------------------------------------------------------------------------


def mean_of(values):
    return lambda index: {"mean": float(np.mean(np.asarray(values)[index]))}


def test_intervals_are_seeded_and_hold_the_value():
    values = np.random.default_rng(0).random(40)
    clusters, strata = [i // 2 for i in range(40)], [i < 20 for i in range(40)]
    first = clustered_intervals(clusters, strata, mean_of(values), seed=1)["mean"]
    assert first == clustered_intervals(clusters, strata, mean_of(values), seed=1)["mean"]
    assert first != clustered_intervals(clusters, strata, mean_of(values), seed=2)["mean"]
    assert first[0] < values.mean() < first[1]


def test_more_questions_about_the_same_videos_do_not_narrow_an_interval():
    videos = np.arange(10)
    right = np.array([0, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    once = clustered_intervals(videos, videos * 0, mean_of(right))["mean"]
    tenfold = clustered_intervals(np.repeat(videos, 10), np.zeros(100), mean_of(np.repeat(right, 10)))["mean"]
    assert once == pytest.approx(tenfold)


def test_there_is_no_interval_from_a_single_video():
    assert clustered_intervals(["a", "a", "b"], [1, 1, 0], mean_of([1, 0, 1])) == {"mean": None}
    assert clustered_intervals([], [], lambda _: {"mean": None}) == {"mean": None}


def test_a_resample_keeps_the_number_of_videos_of_each_side():
    def share(index):
        return {"share": float(np.mean(index < 3))}

    assert clustered_intervals(list(range(8)), [i < 3 for i in range(8)], share)["share"] == [3 / 8, 3 / 8]


def test_the_gate_threshold_separates_what_can_be_separated():
    present = np.array([True, True, False, False])
    assert 0.4 < best_threshold(present, np.array([0.9, 0.6, 0.4, 0.1])) < 0.6
    assert best_threshold(np.array([True, False]), np.array([0.5, 0.5])) is not None
