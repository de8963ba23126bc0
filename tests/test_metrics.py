"""Behaviour of scores and intervals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvchat.evaluation import metrics
from pvchat.evaluation.bootstrap import clustered_intervals, paired_difference
from pvchat.evaluation.controls import best_threshold
from pvchat.evaluation.metrics import ExistenceAnswers, existence_scores

ORIGINS = ("hard_negative", "random_negative", "user")

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


def test_a_duplicated_video_changes_the_interval_and_duplicating_all_changes_the_width_but_not_the_mean():
    """The same clips under other names: the mean stays, the interval shrinks as if there were more evidence."""
    right = np.array([0, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    once = clustered_intervals(range(10), [0] * 10, mean_of(right))["mean"]
    twice = np.tile(right, 2)
    doubled = clustered_intervals(range(20), [0] * 20, mean_of(twice))["mean"]
    assert twice.mean() == right.mean()
    assert doubled[1] - doubled[0] < once[1] - once[0]


def test_subjects_are_drawn_before_their_videos():
    """Subjects that differ widen the interval; of one subject or of equal subjects it stays narrow."""
    subjects = np.repeat(["a", "b", "c", "d"], 10)
    videos = np.arange(40)
    apart = np.repeat([1.0, 0.9, 0.1, 0.0], 10)
    both = clustered_intervals(videos, [0] * 40, mean_of(apart), subjects=subjects)["mean"]
    videos_only = clustered_intervals(videos, [0] * 40, mean_of(apart))["mean"]
    assert both[1] - both[0] > 2 * (videos_only[1] - videos_only[0])
    alone = clustered_intervals(videos, [0] * 40, mean_of(apart), subjects=["a"] * 40)["mean"]
    assert alone == videos_only


def test_videos_of_different_subjects_may_share_an_id():
    right = np.array([1.0, 0.0, 1.0, 0.0])
    interval = clustered_intervals(["v", "w"] * 2, [0] * 4, mean_of(right), subjects=["a", "a", "b", "b"])["mean"]
    assert interval[0] == 0.0 and interval[1] == 1.0


# -- paired tests -----------------------------------------------------------------------------------------------------


def compare(first, second, present, **options):
    return paired_difference(list(range(len(present))), present, first, second, **options)


def test_the_paired_difference_is_that_of_balanced_accuracy():
    present = [True] * 4 + [False] * 2
    first, second = [1, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]
    found = compare(first, second, present)
    assert found["difference"] == pytest.approx((3 / 4 + 1 / 2) / 2 - (1 / 4 + 0) / 2)
    back = compare(second, first, present)
    assert back["difference"] == pytest.approx(-found["difference"]) and back["p"] == pytest.approx(found["p"])


def test_equal_systems_do_not_differ_and_very_different_ones_do():
    present = [True] * 20 + [False] * 20
    same = compare([1, 0] * 20, [1, 0] * 20, present)
    assert (same["difference"], same["p"], same["interval"]) == (0.0, 1.0, [0.0, 0.0])
    far = compare([1] * 40, [1, 0] * 20, present)
    assert far["difference"] == 0.5 and 0 < far["p"] < 0.001 and far["interval"][0] > 0.25


def test_p_is_that_of_all_swaps_when_they_can_be_counted():
    present = [True, True, False, False]
    found = compare([1, 1, 1, 0], [0, 0, 0, 1], present)
    exact = np.mean([abs(sum(signs)) >= 2 for signs in itertools.product((-1, 1), repeat=4)])
    assert found["p"] == pytest.approx(exact, abs=0.02)


def test_questions_of_one_video_are_swapped_together():
    present = [True] * 20 + [False] * 20
    by_question = compare([1] * 40, [1] * 30 + [0] * 10, present)
    clusters = [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10
    by_video = paired_difference(clusters, present, [1] * 40, [1] * 30 + [0] * 10)
    assert by_question["difference"] == pytest.approx(by_video["difference"])
    assert by_question["p"] < 0.01 and by_video["p"] > 0.9  # one video decides: swapping it decides the sign alone


def test_a_one_sided_test_set_has_no_paired_difference():
    assert compare([1, 1], [0, 0], [True, True]) is None
    assert compare([], [], []) is None


@given(existence_answers(), existence_answers(), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_paired_difference_does_not_depend_on_the_order(found, other, random):
    count = min(len(found.present), len(other.present))
    present, first, second = found.present[:count], found.right[:count], other.right[:count]
    order = list(range(count))
    random.shuffle(order)
    once = paired_difference(list(range(count)), present, first, second, permutations=1000)
    again = paired_difference(order, present[order], first[order], second[order], permutations=1000)
    assert once["difference"] == pytest.approx(again["difference"])


def test_the_gate_threshold_separates_what_can_be_separated():
    present = np.array([True, True, False, False])
    assert 0.4 < best_threshold(present, np.array([0.9, 0.6, 0.4, 0.1])) < 0.6
    assert best_threshold(np.array([True, False]), np.array([0.5, 0.5])) is not None
