"""Schedules that are compared see the same questions, and their curves say what was measured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import convergence
from benchmarks.convergence import SETTINGS, SHARES, STARTS, Pauses, Setting
from benchmarks.schedules import PASSES, REFERENCE_RATE, schedule, table
from pvchat.evaluation.ablation.variants import FULL, tables_for
from pvchat.session import EMBEDDED_BASE
from pvchat.trainers.adapter import SUBJECT_INITS
from pvchat.trainers.collator import questions_of_epoch
from pvchat.trainers.config import GROUPS
from pvchat.trainers.run import base_settings, check_settings, merged_settings


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.title)
def test_every_schedule_brings_as_many_questions_of_a_clip(setting):
    settings = schedule(*setting)
    check_settings(settings, ("1", "2"))
    for stage, count in PASSES.items():
        take = (settings["train"] | settings[stage])["qa_per_video"]
        epochs = range(settings[stage]["num_train_epochs"])
        asked = [q for epoch in epochs for q in questions_of_epoch(18, take, 0, "clip", epoch)]
        assert len(asked) == count
        assert max(map(asked.count, set(asked))) == 1  # none twice


def test_the_embedded_bases_own_settings_are_the_fast_schedule():
    own = base_settings(EMBEDDED_BASE)
    assert merged_settings(own, schedule(6, 4, 1.0)) == merged_settings(
        own, schedule(own["train"]["qa_per_video"], 4, 1.0)
    )
    assert {stage: own[stage]["num_train_epochs"] for stage in PASSES} == {"1": 1, "2": 3}
    assert all(schedule(6, 4, 1.0)[s]["num_train_epochs"] == own[s]["num_train_epochs"] for s in PASSES)


def test_the_rate_scales_every_group():
    full, part = (schedule(1, 2, rate)["train"] for rate in (1.0, REFERENCE_RATE))
    for name in GROUPS:
        field = f"{name}_learning_rate"
        assert part[field] == pytest.approx(REFERENCE_RATE * full[field]) and full[field] > 0


def test_a_table_of_ones_own_stands_beside_those_that_have_a_name():
    own = table()
    assert [t.name for t in tables_for((own, "losses"), 16)] == ["schedule", "losses"]
    assert own.rows[1].variant is FULL and own.rows[0].variant.settings["train"]["per_device_train_batch_size"] == 2


def test_a_pause_comes_at_its_share_of_the_steps_and_is_not_timed(monkeypatch):
    now = iter(range(0, 1000, 5))
    monkeypatch.setattr(convergence.time, "process_time", lambda: next(now))
    asked = []

    def ask():
        asked.append(next(now))  # a pause takes time
        return {"auroc": 0.5}

    pauses = Pauses(ask, (0.25, 1.0), start=100.0)
    for step in range(1, 9):
        state = SimpleNamespace(global_step=step, max_steps=8)
        pauses.on_step_begin(None, state, None)
        pauses.on_step_end(None, state, None)
    assert [point["seconds"] for point in pauses.points] == [110.0, 140.0]
    assert len(asked) == 2 and pauses.points[0]["auroc"] == 0.5


def test_the_page_has_the_mean_of_all_people_at_every_pause():
    def curve(high):
        count = len(SHARES) + 1
        return [
            {"seconds": 10.0 * i, "balanced_accuracy": high - 0.1 * (count - i), "auroc": 0.9} for i in range(count)
        ]

    title = Setting(6, 4, 1).title
    passport = {
        "command": "python -m benchmarks.convergence", "seed": 0, "created": "2026-01-01T00:00:00Z",
        "config": {"people": 2}, "versions": {"pvchat": "1", "torch": "2"},
        "hardware": {"cpu": "cpu", "cores": 2, "gpus": []},
    }  # fmt: skip
    starts = {start: {"settings": {title: convergence.means([curve(1.0), curve(0.8)])}} for start in STARTS}
    page = convergence.markdown({"starts": starts, "passport": passport})
    assert page.count(f"| {title} | 40 | 0.400 | 0.500 | 0.600 | 0.700 | 0.800 | 0.900 |") == 2
    assert len(convergence.figure(starts).axes) == 4


def test_the_starts_that_are_compared_are_those_of_an_adapter():
    assert sorted(STARTS) == sorted(SUBJECT_INITS)
