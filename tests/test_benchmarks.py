"""What benchmarks say about the curves that they measured."""

from __future__ import annotations

import pytest

from benchmarks.activation_rate import curve_of, markdown


def histories(rates, target=0.5):
    steps = [{"active_heads": rate, "lm_loss": 1.0 / (i + 1)} for i, rate in enumerate(rates)]
    return [{"target_active_heads": target, "steps": steps[:4]}, {"target_active_heads": target, "steps": steps[4:]}]


def test_a_rate_that_arrives_is_held_from_the_step_after_which_it_never_leaves():
    found = curve_of(histories([1.0] * 10 + [0.5] * 20))
    assert found["steps"] == 30 and found["last_10_steps"] == pytest.approx(0.5)
    assert found["held_from_step"] == 14  # of steps 10 to 14 one is still at 1.0, and their mean is 0.6
    assert (found["highest"], found["lowest"]) == pytest.approx((1.0, 0.5))


def test_a_rate_that_leaves_at_the_end_is_not_held():
    assert curve_of(histories([0.5] * 20 + [1.0] * 5))["held_from_step"] is None
    assert curve_of(histories([0.9] * 20))["held_from_step"] is None


def test_a_rate_that_is_there_from_the_start_is_held_from_the_first_window():
    assert curve_of(histories([0.45] * 12))["held_from_step"] == 5


def test_the_page_has_one_row_each_and_the_passport():
    result = {"with": curve_of(histories([0.5] * 10)), "without": curve_of(histories([1.0] * 10))}
    result["passport"] = {
        "command": "python -m benchmarks.activation_rate", "seed": 0, "created": "2026-01-01T00:00:00Z",
        "versions": {"pvchat": "1", "torch": "2"}, "hardware": {"cpu": "cpu", "cores": 2, "gpus": []},
    }  # fmt: skip
    page = markdown(result)
    assert "| with SPR and HAE | 0.50 | 5 of 10 | 0.500 |" in page
    assert "| without | 0.50 | never | 1.000 |" in page
    assert "`python -m benchmarks.activation_rate` · seed 0" in page
